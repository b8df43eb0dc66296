"""Training speed of caplet's models against the same networks in plain broadcast form, in one run.

Each side runs in a process of its own (so that allocator settings do not leak from one to the other) and waits while
the other one works; steps alternate A B C A B C, and medians are compared. A step is forward, margin loss, backward
and Adam on a batch of random images.

    python benchmarks/train_speed.py                        # both models, writes benchmarks/records/<name>.json and .md
    python benchmarks/train_speed.py --models shallow --steps 5 --no-record
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RECORDS = Path(__file__).parent / "records"
SIDES = ("reference", "caplet", "caplet bfloat16")
TARGETS = {"shallow": 2.0, "deep": 2.8}
TITLES = {"shallow": "ShallowCaps 1x28x28", "deep": "DeepCaps 3x32x32"}


# --- the networks in plain broadcast form: channels first, votes by multiply-and-sum --------------------------------


def squash(s: Tensor, dim: int) -> Tensor:
    """v = s |s| / (1 + |s|^2)."""
    norm = s.norm(dim=dim, keepdim=True)
    return s * norm / (1 + norm**2)


def route(votes: Tensor, bias: Tensor, iterations: int) -> Tensor:
    """Routing of dense votes (B, I, G, D). As the public float codes do, the votes' dimension is moved to the front for
    the product with the coupling coefficients, and back for the sum; every iteration updates the logits."""
    front = votes.permute(3, 0, 1, 2).contiguous()
    logits = votes.new_zeros(votes.shape[:3])
    for _ in range(iterations):
        weighted = F.softmax(logits, dim=2) * front
        activation = squash(weighted.permute(1, 2, 3, 0).contiguous().sum(1) + bias, 2)
        logits = logits + (votes * activation.unsqueeze(1)).sum(3)
    return activation


def route_maps(votes: Tensor, bias: Tensor, iterations: int) -> Tensor:
    """Routing of maps of votes (B, I, G, D, H, W) with one softmax over G, H and W."""
    logits = votes.new_zeros(*votes.shape[:3], *votes.shape[4:])
    for _ in range(iterations):
        coupling = F.softmax(logits.flatten(2), dim=2).view_as(logits)
        activation = squash((coupling.unsqueeze(3) * votes).sum(1) + bias, 2)
        logits = logits + (votes * activation.unsqueeze(1)).sum(3)
    return activation


class PlainDense(nn.Module):
    """Class capsules: each vote is a broadcast product summed over the input dimension."""

    def __init__(self, inputs: int, in_dim: int, outputs: int, dim: int) -> None:
        super().__init__()
        self.shape = (inputs, outputs, dim)
        self.weight = nn.Parameter(0.1 * torch.randn(inputs, in_dim, outputs * dim))
        self.bias = nn.Parameter(torch.zeros(outputs, dim))

    def forward(self, x: Tensor) -> Tensor:
        votes = (x.unsqueeze(3) * self.weight).sum(2).view(-1, *self.shape)
        return route(votes, self.bias, 3)


class PlainShallow(nn.Module):
    """Sabour et al.'s network: convolution, primary capsules of 32 types x 8-D, 10 class capsules of 16-D."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 256, 9)
        self.primary = nn.Conv2d(256, 256, 9, 2)
        self.digit = PlainDense(1152, 8, 10, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.primary(F.relu(self.conv(x)))
        x = squash(x.view(len(x), 32, 8, 6, 6), 2)
        return self.digit(x.permute(0, 1, 3, 4, 2).reshape(len(x), -1, 8))


class PlainBlock(nn.Module):
    """Three conv-capsule layers and a skip; the last block's skip is a routed 3-D convolution."""

    def __init__(self, channels: int, dim: int, routed: bool) -> None:
        super().__init__()
        out = 32 * dim
        self.dim = dim
        self.l1 = nn.Conv2d(channels, out, 3, 2, 1)
        self.l2, self.l3 = nn.Conv2d(out, out, 3, 1, 1), nn.Conv2d(out, out, 3, 1, 1)
        self.skip: nn.Module = nn.Conv2d(out, out, 3, 1, 1)
        if routed:
            self.skip = nn.Conv3d(1, out, (dim, 3, 3), (dim, 1, 1), (0, 1, 1))
            self.bias = nn.Parameter(torch.zeros(32, dim, 1, 1))

    def caps(self, x: Tensor) -> Tensor:
        return squash(x.view(len(x), 32, self.dim, *x.shape[2:]), 2)

    def forward(self, x: Tensor) -> Tensor:
        first = self.caps(self.l1(x.flatten(1, -3) if x.ndim == 5 else x))
        second = self.caps(self.l2(first.flatten(1, 2)))
        third = self.caps(self.l3(second.flatten(1, 2)))
        if isinstance(self.skip, nn.Conv3d):
            votes = self.skip(first.flatten(1, 2).unsqueeze(1))  # B, 32 * dim, I, H, W
            votes = votes.permute(0, 2, 1, 3, 4).contiguous().unflatten(2, (32, self.dim))
            return third + route_maps(votes, self.bias, 3)
        return third + self.caps(self.skip(first.flatten(1, 2)))


class PlainDeep(nn.Module):
    """Rajasegaran et al.'s network in the Q-CapsNets variant, for 3x32x32 images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 128, 3, 1, 1)
        self.norm = nn.BatchNorm2d(128, eps=1e-3)
        dims = (4, 8, 8, 8)
        channels = (128, 128, 256, 256)
        self.blocks = nn.ModuleList(
            PlainBlock(c, d, last) for c, d, last in zip(channels, dims, (False, False, False, True), strict=True)
        )
        self.digit = PlainDense(640, 8, 10, 32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(F.relu(self.conv1(x)))
        maps = []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        capsules = [m.permute(0, 1, 3, 4, 2).reshape(len(m), -1, 8) for m in maps[-2:]]
        return self.digit(torch.cat(capsules, 1))


# --- one side: a process that makes a step when told to ---------------------------------------------------------------


def margin_loss(capsules: Tensor, labels: Tensor) -> Tensor:
    """Sabour et al. 2017, equation 4."""
    length = torch.sqrt((capsules.float() ** 2).sum(-1) + 1e-12)
    target = F.one_hot(labels, length.shape[1])
    loss = target * F.relu(0.9 - length) ** 2 + 0.5 * (1 - target) * F.relu(length - 0.1) ** 2
    return loss.sum(1).mean()


def make_step(side: str, model: str, batch: int) -> Callable[[], None]:
    """The training step of one side on one model."""
    torch.manual_seed(0)
    net: nn.Module
    if side == "reference":
        net = {"shallow": PlainShallow, "deep": PlainDeep}[model]()
    else:
        from caplet.models.registry import build, named_model
        from caplet.nn.memory import keep_freed_memory

        keep_freed_memory()
        named = named_model(model)
        net = build(named.family, named.config)
    half = side.endswith("bfloat16")
    images = torch.rand(batch, *((1, 28, 28) if model == "shallow" else (3, 32, 32)))
    labels = torch.randint(0, 10, (batch,))
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)

    def step() -> None:
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            capsules = net(images)
        margin_loss(capsules, labels).backward()
        optimiser.step()

    return step


def serve(side: str, model: str, batch: int, threads: int) -> None:
    """Make one step per line read; answer its seconds."""
    torch.set_num_threads(threads)
    step = make_step(side, model, batch)
    for _ in sys.stdin:
        start = time.perf_counter()
        step()
        print(time.perf_counter() - start, flush=True)


# --- the comparison ---------------------------------------------------------------------------------------------------


def compare(model: str, batch: int, threads: int, steps: int, warm_up: int) -> dict[str, Any]:
    """Median step times of all sides, measured in turns."""
    workers = {}
    for side in SIDES:
        command = [sys.executable, __file__, "--serve", side, "--models", model]
        command += ["--batch", str(batch), "--threads", str(threads)]
        workers[side] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    try:
        for index in range(warm_up + steps):
            for side, worker in workers.items():
                assert worker.stdin is not None
                assert worker.stdout is not None
                worker.stdin.write("\n")
                worker.stdin.flush()
                answer = worker.stdout.readline()
                if not answer:
                    raise SystemExit(f"{side} on {model} died with exit code {worker.wait()}")
                if index >= warm_up:
                    times[side].append(float(answer))
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()
    medians = {side: statistics.median(values) for side, values in times.items()}
    return {
        "model": TITLES[model],
        "target": TARGETS[model],
        "speedup": medians["reference"] / medians["caplet"],
        "sides": {
            side: {
                "median_seconds": round(medians[side], 4),
                "quartiles_seconds": [round(q, 4) for q in statistics.quantiles(times[side], n=4)[::2]],
                "images_per_second": round(batch / medians[side], 1),
                "speedup": round(medians["reference"] / medians[side], 2),
            }
            for side in SIDES
        },
    }


def markdown(record: dict[str, Any]) -> str:
    """The record as a page."""
    lines = [
        "# Training speed",
        "",
        f"{record['date']}, {record['machine']}, {record['threads']} threads, torch {record['torch']}, batch"
        f" {record['batch']}, median of {record['steps']} steps taken in turns, 1-minute load before {record['load']}.",
        f"Made by `{record['command']}`.",
        "",
        "The reference is the same network in plain broadcast form (votes by multiply-and-sum, channels first).",
        "",
        "| model | side | step | quartiles | images/s | against the reference | target |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in record["results"]:
        for side, row in result["sides"].items():
            low, high = row["quartiles_seconds"]
            target = f">= {result['target']}x" if side == "caplet" else ""
            lines.append(
                f"| {result['model']} | {side} | {row['median_seconds']:.3f} s | {low:.3f} to {high:.3f} s"
                f" | {row['images_per_second']} | {row['speedup']:.2f}x | {target} |"
            )
    return "\n".join(lines) + "\n"


def processor() -> str:
    """The processor's name, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=sorted(TITLES), default=["shallow", "deep"])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--no-record", action="store_true", help="print only")
    parser.add_argument("--name", help="name of the record (default: <date>-train-speed)")
    parser.add_argument("--serve", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.models[0], options.batch, options.threads)
        return
    record: dict[str, Any] = {
        "benchmark": "train_speed",
        "date": time.strftime("%Y-%m-%d"),
        "command": shlex.join(["python", "benchmarks/train_speed.py", *sys.argv[1:]]),
        "machine": processor(),
        "torch": torch.__version__,
        "threads": options.threads,
        "batch": options.batch,
        "steps": options.steps,
        "load": round(os.getloadavg()[0], 2),
        "results": [
            compare(model, options.batch, options.threads, options.steps, options.warm_up) for model in options.models
        ],
    }
    page = markdown(record)
    print(page)
    if not options.no_record:
        RECORDS.mkdir(exist_ok=True)
        stem = RECORDS / (options.name or f"{record['date']}-train-speed")
        stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
        stem.with_suffix(".md").write_text(page)


if __name__ == "__main__":
    main()
