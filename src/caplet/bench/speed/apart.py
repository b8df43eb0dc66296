"""A network in a process of its own, so that the allocator's settings of this one do not reach it."""

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Literal

import torch
from torch import Tensor, nn

from caplet.bench.speed.works import inference, training
from caplet.errors import ConfigError

What = Literal["inference", "training"]
_END = "end"


@contextmanager
def apart(network: nn.Module, images: Tensor, labels: Tensor, threads: int) -> Iterator[Callable[[What], None]]:
    """A callable that makes ``network`` do one forward pass, or one training step, in another process.

    Args:
        images: float (B, C, H, W); ``labels`` int64 (B,), at most as many: the training step takes the first images.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, network, images, labels, threads), daemon=True)
    process.start()
    there.close()

    def ask(what: What) -> None:
        try:
            here.send(what)
            here.recv()
        except (EOFError, OSError):
            raise ConfigError(f"the process of the plain network ended with code {process.exitcode}") from None

    try:
        yield ask
    finally:
        process.terminate()
        process.join()


def _serve(connection: Connection, network: nn.Module, images: Tensor, labels: Tensor, threads: int) -> None:
    torch.set_num_threads(threads)
    works = {"inference": inference(network, images), "training": training(network, images[: len(labels)], labels)}
    while True:
        try:
            what = connection.recv()
        except (EOFError, KeyboardInterrupt):
            return
        works[what]()
        connection.send(None)
