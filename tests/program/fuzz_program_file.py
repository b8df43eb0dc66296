"""Mutate ``.caplet`` files at random: ``python tests/program/fuzz_program_file.py SEED FILES``.

Three kinds in turn: flipped bytes; a cut, a repeat or a splice; any field of the document replaced and the checksum
recomputed, as an attacker would. Every file must raise ArtefactError, or load as a Program that plans and runs.
Prints what happened as one line of JSON.
"""

import json
import random
import sys
import time
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "support"))
from test_program_file import PATHS, SMALL, _head, _replaced, _sealed

from caplet.errors import ArtefactError
from caplet.program import loads, plan_memory, run

VALUES: list[object] = [
    *[None, True, False, "", "a", "conv1", "conv1.weight", "digit.votes", "fixed", "log2", "wide", "nearest"],
    *["stochastic", "truncate", [], {}, [1], [0], [1, 1], [2, 2, 2], [4, 4, 4], 1.5],
    *range(-3, 20),
    *[31, 32, 33, 62, 63, 64, 65, 100, 255, 256, 2**20, 2**26, 2**31, 2**39, 2**40, 2**63, 2**64, -(2**63)],
]


def flipped(rng: random.Random) -> bytes:
    data = bytearray(SMALL)
    for _ in range(rng.randint(1, 4)):
        data[rng.randrange(len(data))] ^= rng.randint(1, 255)
    return bytes(data)


def spliced(rng: random.Random) -> bytes:
    a, b = sorted(rng.randrange(len(SMALL) + 1) for _ in range(2))
    return rng.choice([SMALL[:a] + SMALL[b:], SMALL[:b] + SMALL[a:], SMALL[:a] + rng.randbytes(b - a) + SMALL[b:]])


def forged(rng: random.Random) -> bytes:
    document = _head()["program"]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        try:
            document = _replaced(document, rng.choice(PATHS), rng.choice(VALUES))
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change removed this place
    return _sealed(document)


def main(seed: int, files: int) -> None:
    rng = random.Random(seed)
    counts = {"files": files, "refused": 0, "ran": 0}
    slowest, start = 0.0, time.time()
    for index in range(files):
        # Forged files take longest; one in ten.
        data = forged(rng) if index % 10 == 0 else (flipped, spliced)[index % 2](rng)
        before = time.time()
        try:
            program = loads(data)
        except ArtefactError:
            counts["refused"] += 1
            continue
        finally:
            slowest = max(slowest, time.time() - before)
        plan_memory(program, "small")
        run(program, np.full((1, *program.image_shape), 200, dtype=np.uint8))
        counts["ran"] += 1
    print(json.dumps({**counts, "seed": seed, "slowest_load_s": slowest, "seconds": time.time() - start}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
