"""What the frozen part of a network gives for every image, computed once, kept on disk and read batch by batch.

A frozen part has few views of an image to see: the image, its mirror image, then random shifts of both. The file of a
view is an array float16 (images, ...); a record beside it says what it was computed from, and must agree with the run.
"""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from caplet.data.images import augment
from caplet.data.imageset import ImageSet, to_float
from caplet.errors import ArtefactError, ConfigError, ModelError
from caplet.files import access, digest, file_digest, locked, read_json, write_json
from caplet.models.assemble import tensor_parts
from caplet.models.base import CapsNet
from caplet.nn.device import mixed
from caplet.train.settings import LoopSettings
from caplet.train.state import VIEW, generator

CHUNK = 128
"""Images computed together; a stopped computation goes on with the next chunk."""
_SAVED = 16


@dataclass(frozen=True, eq=False)
class Features:
    """The frozen part's outputs for the images of one set, in their order; batches of them stand for images.

    Attributes:
        views: each a float16 array (N, ...) on disk.
        labels: int64 (N,).
    """

    views: tuple[np.ndarray, ...]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def drawn(self, chosen: Tensor, draws: torch.Generator) -> Tensor:
        """A random view of each image at the positions ``chosen``, float32 (B, ...), channels_last."""
        picked = torch.randint(len(self.views), chosen.shape, generator=draws).tolist()
        found = np.stack([self.views[view][place] for view, place in zip(picked, chosen.tolist(), strict=True)])
        return _float(found)

    def batches(self, batch_size: int, *, device: torch.device | str | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """The first view of each image and the labels, as :meth:`caplet.data.ImageSet.batches` gives images."""
        for start in range(0, len(self), batch_size):
            part = slice(start, start + batch_size)
            yield _float(self.views[0][part]).to(device), self.labels[part].to(device)


def _float(found: np.ndarray) -> Tensor:
    values = torch.from_numpy(found.astype(np.float32))
    return values.contiguous(memory_format=torch.channels_last) if values.ndim == 4 else values


def view_count(settings: LoopSettings) -> int:
    """How many views of an image the settings' augmentation has, at most as many as asked for."""
    most = 64 if settings.shift or settings.cutout else 1 + settings.flip
    return min(most, settings.views or 1 + settings.flip)


@dataclass(frozen=True)
class FeatureStore:
    """Files of features in a folder.

    Attributes:
        folder: one file a set and view, and its record.
        stages: of the model, those that are frozen; what the last one gives is kept.
        progress: draw a bar and print a line on stderr.
        stopped: asked after every chunk; a true answer ends the computation, which can be taken up again.
    """

    folder: Path
    stages: int
    settings: LoopSettings
    progress: bool = False
    stopped: Callable[[], bool] = bool

    def of(self, model: CapsNet, images: ImageSet, name: str, views: int) -> Features:
        """The features of ``images``: those on disk, or else computed now.

        Args:
            model: with its frozen part in evaluation mode, on the device that computes.
            name: of the files.
            views: how many; the first is the image as it is, the second its mirror image if the settings flip.

        Raises:
            ConfigError: the folder has features of other images, of another network or of other settings.
            ArtefactError: a file is damaged, or cannot be written; another process has the folder.
            ModelError: values that float16 has no room for.
            KeyboardInterrupt: ``stopped`` said so; what is done stays.
        """
        with locked(self.folder, "--features"):
            return Features(tuple(self._view(model, images, name, view) for view in range(views)), images.labels)

    def _view(self, model: CapsNet, images: ImageSet, name: str, view: int) -> np.ndarray:
        path = self.folder / f"{name}-{view}.npy"
        beside, made = path.with_suffix(".json"), self._made(model, images, view)
        record: dict[str, Any] = {**made, "done": 0}
        if beside.exists():
            found = read_json(beside, "the record of features")
            record |= found if isinstance(found, dict) else {}
            if type(record["done"]) is not int or not 0 <= record["done"] <= len(images):
                raise ArtefactError(f"{beside} is damaged: done is {record['done']!r:.40}; delete {self.folder}")
            for what, value in made.items():
                if record[what] != value:
                    todo = "choose another folder (--features), or delete this one"
                    raise ConfigError(f"{path}: features of other {what} than this run's: {todo}")
        with torch.inference_mode():
            sizes = (len(images), *self._run(model, to_float(images.images[:1])).shape[1:])
        with access("write the features", path):
            try:
                mode: Literal["r+", "w+"] = "r+" if record["done"] else "w+"
                array = np.lib.format.open_memmap(path, mode, np.float16, sizes)
                if array.shape != sizes or array.dtype != np.float16:
                    raise ValueError(f"it has {array.dtype} {array.shape}, not float16 {sizes}")
                if "sha256" in record and record["sha256"] != file_digest(path):
                    raise ValueError("it has not the content that was written")
                if hasattr(os, "posix_fallocate"):  # a disk that gets full under a mapped file would end the process
                    with path.open("r+b") as file:
                        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            except ValueError as error:
                raise ArtefactError(f"{path} is damaged: {error}; delete {self.folder}") from error
        if record["done"] < len(images):
            for done in self._compute(model, images, view, array, record["done"]):
                array.flush()
                record["done"] = done
                write_json(beside, record)
                if self.stopped():
                    raise KeyboardInterrupt
            write_json(beside, {**record, "sha256": file_digest(path)})
        return array

    def _compute(self, model: CapsNet, images: ImageSet, view: int, into: np.ndarray, done: int) -> Iterator[int]:
        """Fill rows from ``done`` on; yields how many there are, after every few chunks and when stopped."""
        console = Console(stderr=True, quiet=not self.progress)
        began, first = time.monotonic(), done
        starts = range(done, len(images), CHUNK)
        what = f"{images.name}: features, view {view + 1}"
        for start in track(starts, what, console=console, transient=True, disable=not console.is_terminal):
            pixels = to_float(images.images[start : start + CHUNK], model.device)
            if view:
                pixels = self._viewed(pixels, view, start)
            with torch.inference_mode():
                values = self._run(model, pixels).cpu().numpy()
            if not np.abs(values).max() < np.finfo(np.float16).max:
                raise ModelError(
                    f"{images.name}: features up to {np.abs(values).max():g}, too large to be kept: set views=0"
                )
            into[start : start + len(values)] = values
            done = start + len(values)
            if done == len(images) or self.stopped() or not (start // CHUNK + 1) % _SAVED:
                yield done
        seconds = time.monotonic() - began
        console.print(f"{what}: {done - first:,} images, {(done - first) / seconds:.0f} images/s", highlight=False)

    def _viewed(self, pixels: Tensor, view: int, start: int) -> Tensor:
        """A view of the images from number ``start`` on: mirrored, or with random shifts (and mirrored or not)."""
        settings = self.settings
        if settings.flip and view == 1:
            return pixels.flip(3)
        draws = generator(settings.seed, VIEW, view, start)
        return augment(pixels, draws, shift=settings.shift, flip=settings.flip, cutout=settings.cutout)

    def _made(self, model: CapsNet, images: ImageSet, view: int) -> dict[str, str]:
        """What features depend on, by what it is called in messages."""
        frozen = {
            f"{layer.name}.{name}": tensor
            for stage in model.stages()[: self.stages]
            for layer in stage.layers
            for name, tensor in (*layer.named_parameters(), *layer.named_buffers())
        }
        last = model.stages()[self.stages - 1].name
        config = model.config.model_dump_json(include={"image", "trunk"})
        asked = self.settings
        draws = f"{asked.seed} {asked.shift} {asked.cutout}" if view > asked.flip else ""
        return {
            "images": digest(images.sha256(), images.ids.numpy().data),
            "weights": digest(last, config, *tensor_parts(frozen)),
            "settings": f"{self.settings.precision} {bool(view and self.settings.flip)} {draws}".rstrip(),
        }

    def _run(self, model: CapsNet, pixels: Tensor) -> Tensor:
        device = model.device
        state: tuple[Tensor, ...] = (pixels.to(device),)
        with mixed(model, device, self.settings.precision):
            for stage in model.stages()[: self.stages]:
                state = stage.run(state)
        return state[0].float()
