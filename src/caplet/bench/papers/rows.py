"""The rows: which table of which paper each belongs to, what it needs, and what the paper's authors published.

Published figures are those of the papers' abstracts, or of their authors' later runs, and stand beside their source.
What a paper's inner tables say is not repeated here.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial

from caplet.bench.papers.work import Prune, PruneCnn, Searched, Uniform, Work
from caplet.errors import ConfigError, suggest
from caplet.jobs.prune.settings import PruneSettings
from caplet.jobs.quantize.settings import QuantizeSettings
from caplet.prune.choices import BackbonePruneSettings
from caplet.quant.choices import Granularity, Method
from caplet.train.settings import FinetuneSettings

as_measured = partial(QuantizeSettings, accept="measured", method=Method.QCAPSNETS)
"""Papers accept a plan by the images that its search saw."""


@dataclass(frozen=True)
class Paper:
    """A publication.

    Attributes:
        name: short, for commands.
        title: authors, title, place and year.
        doi: where it is found.
        reading: how its table is redone here, and what is our choice.
    """

    name: str
    title: str
    doi: str
    reading: str


@dataclass(frozen=True)
class PaperNet:
    """A trained network that rows need.

    Attributes:
        name: as in ``--model NAME=FILE``.
        about: what it is.
        data: name of its dataset.
        command: what makes such a checkpoint, without ``--root`` and ``--out``; None where the authors' Keras weights
            are read.
    """

    name: str
    about: str
    data: str
    command: str | None


@dataclass(frozen=True)
class Published:
    """What the authors report; None where the source does not say.

    Attributes:
        loss: of accuracy, percentage points, as they write it.
        weights, activations: memory, how many times smaller, as they write it.
        source: where it stands.
    """

    loss: str | None
    weights: str | None
    activations: str | None
    source: str


@dataclass(frozen=True)
class PaperRow:
    """One row of a table: a network of a paper, and what is done with it."""

    name: str
    paper: Paper
    network: PaperNet
    work: Work
    published: tuple[Published, ...] = ()


QCAPSNETS = Paper(
    "qcapsnets",
    "A. Marchisio, B. Bussolino, A. Colucci, M. Martina, G. Masera, M. Shafique: Q-CapsNets: A Specialized Framework"
    " for Quantizing Capsule Networks. DAC 2020",
    "10.1109/DAC18072.2020.9218746",
    "tolerance 0.2 % of the float accuracy, weights in a fifth of their float size; once with one integer bit and the"
    " three rounding schemes of the paper, once with calibrated exponents and rounding to nearest",
)
PROGRESSIVE = Paper(
    "progressive",
    "M. Raji, A. Ghazizadeh Ahsaei, K. Soroush, B. Ghavami: Progressive Bitwidth Assignment Approaches for Efficient"
    " Capsule Networks Quantization. IEEE Access 2025",
    "10.1109/ACCESS.2025.3534434",
    "tolerance 0.2 percentage points, no budget; the search is our reading (docs/progressive.md)",
)
EFFICIENT = Paper(
    "efficient",
    "R. Renzulli, M. Grangetto: Towards Efficient Capsule Networks. ICIP 2022",
    "10.48550/arXiv.2208.09203",
    "W, A and bytes are of float32; shares of the multiply-accumulates, scores and epochs are our choice"
    " (docs/pruning.md, docs/backbones.md)",
)
Q7 = Paper(
    "q7",
    "M. Costa, D. Costa, T. Gomes, S. Pinto: Shifting Capsule Networks from the Cloud to the Deep Edge. ACM TIST 2022",
    "10.48550/arXiv.2110.02911",
    "8 bits for every tensor, power-of-two scales, nothing searched; and the same network with widths that were"
    " searched, which the paper does not do",
)
PAPERS = (QCAPSNETS, PROGRESSIVE, EFFICIENT, Q7)

NETWORKS: dict[str, PaperNet] = {
    network.name: network
    for network in (
        PaperNet("shallow-mnist", "ShallowCaps", "mnist", "caplet train --recipe shallow-mnist"),
        PaperNet(
            "shallow-fashion-mnist", "ShallowCaps", "fashion-mnist", "caplet train --recipe shallow-fashion-mnist"
        ),
        PaperNet("deep-mnist", "DeepCaps", "mnist", "caplet train --recipe deepcaps-fashion-mnist --data mnist"),
        PaperNet("deep-fashion-mnist", "DeepCaps", "fashion-mnist", "caplet train --recipe deepcaps-fashion-mnist"),
        PaperNet("deep-cifar10", "DeepCaps", "cifar10", "caplet train --recipe deepcaps-cifar10"),
        PaperNet("deep-svhn", "DeepCaps", "svhn", "caplet train --recipe deepcaps-cifar10 --data svhn"),
        PaperNet("q7-mnist", "Q7-CapsNets", "mnist", "caplet train --recipe shallow-mnist --model q7-mnist"),
        PaperNet("q7-cifar10", "Q7-CapsNets", "cifar10", None),
        PaperNet("q7-smallnorb", "Q7-CapsNets", "smallnorb", None),
        PaperNet("resnet50-cifar10", "ResNet-50 with capsules", "cifar10", "caplet train --model resnet50-caps"),
        PaperNet(
            "resnet50-tiny-imagenet",
            "ResNet-50 with capsules",
            "tiny-imagenet",
            "caplet train --model resnet50-caps --data tiny-imagenet",
        ),
        PaperNet(
            "mobilenetv1-cifar10", "MobileNetV1 with capsules", "cifar10", "caplet train --model mobilenetv1-caps"
        ),
        PaperNet(
            "lite0-cifar10",
            "EfficientNet-Lite0 with capsules",
            "cifar10",
            "caplet train --model timm/tf_efficientnet_lite0 --pretrained FILE --data cifar10 --size 64",
        ),
    )
}
"""Every network that a row needs."""


def _qcapsnets() -> Iterator[PaperRow]:
    reruns = "the authors' corrected reruns of 2022, searched on the test split, A as A*; in their repository"
    published = {
        "shallow-mnist": (Published("0.19 of 99.67", "6.40x", "3.66x", reruns),),
        "shallow-fashion-mnist": (Published("0.17 of 92.79", "5.65x", "5.12x", reruns),),
        "deep-cifar10": (
            Published("0.15", "6.2x (memory)", None, "abstract"),
            Published("0.11 of 91.26", "4.83x", "2.64x", reruns),
        ),
    }
    for name in ("shallow-mnist", "shallow-fashion-mnist", "deep-mnist", "deep-fashion-mnist", "deep-cifar10"):
        papers = as_measured(tolerance=0.2, relative=True, paper_formats=True, rounding="all")
        ours = as_measured(tolerance=0.2, relative=True)
        reported = published.get(name, ())
        yield PaperRow(
            f"qcapsnets-{name}-paper",
            QCAPSNETS,
            NETWORKS[name],
            Searched("Q-CapsNets, one integer bit, 3 rounding schemes", papers),
            reported,
        )
        for short, about, chosen in (
            ("", "Q-CapsNets, calibrated exponents", ours),
            ("-default", "caplet's default, kept on new images", QuantizeSettings(tolerance=0.2, relative=True)),
        ):
            yield PaperRow(f"qcapsnets-{name}{short}", QCAPSNETS, NETWORKS[name], Searched(about, chosen), reported)


def _progressive() -> Iterator[PaperRow]:
    published = (Published("0.09", "7.02x", "3.74x", "abstract; for which approach, it does not say"),)
    ways = {
        Granularity.NETWORK: "network-wise",
        Granularity.BLOCK: "block-wise",
        Granularity.LAYER: "layer-wise",
        Granularity.TENSOR: "layer-wise, and routing",
    }
    networks = (
        "shallow-mnist",
        "shallow-fashion-mnist",
        "deep-mnist",
        "deep-fashion-mnist",
        "deep-cifar10",
        "deep-svhn",
    )
    for name in networks:
        for granularity, way in ways.items():
            settings = as_measured(method=Method.PROGRESSIVE, tolerance=0.2, granularity=granularity)
            yield PaperRow(
                f"progressive-{name}-{granularity}",
                PROGRESSIVE,
                NETWORKS[name],
                Searched(f"progressive, {way}", settings),
                published if name == "deep-cifar10" else (),
            )


def _efficient() -> Iterator[PaperRow]:
    for name in ("shallow-mnist", "shallow-fashion-mnist"):
        for macs in (0.5, 0.1):
            settings = PruneSettings(macs=macs, teach=False, lr=1e-3)
            work = Prune(f"capsules and channels pruned to {macs:.0%} of the MACs, 1 epoch", settings)
            yield PaperRow(f"efficient-{name}-{macs:.0%}".replace("%", ""), EFFICIENT, NETWORKS[name], work)
    for name in ("resnet50-cifar10", "resnet50-tiny-imagenet", "mobilenetv1-cifar10", "lite0-cifar10"):
        for macs in (0.75, 0.5, 0.25):
            cnn = PruneCnn(
                f"CNN pruned to {macs:.0%} of the MACs, 3 epochs",
                BackbonePruneSettings(macs=macs),
                FinetuneSettings(epochs=3),
            )
            yield PaperRow(f"efficient-{name}-{macs:.0%}".replace("%", ""), EFFICIENT, NETWORKS[name], cnn)


def _q7() -> Iterator[PaperRow]:
    published = (Published("0.07 to 0.18", "almost 4x (memory, -75 %)", None, "abstract, over its three networks"),)
    searches = {
        "qcapsnets": Searched("Q-CapsNets, 0.2 points", as_measured(tolerance=0.2)),
        "progressive": Searched("progressive, 0.2 points", as_measured(method=Method.PROGRESSIVE, tolerance=0.2)),
        "ilp": Searched("integer program, 0.2 points", as_measured(method=Method.ILP, tolerance=0.2)),
    }
    for name in ("q7-mnist", "q7-cifar10", "q7-smallnorb"):
        yield PaperRow(f"{name}-8", Q7, NETWORKS[name], Uniform(8), published)
        for method, work in searches.items():
            yield PaperRow(f"{name}-{method}", Q7, NETWORKS[name], work)


ROWS: dict[str, PaperRow] = {row.name: row for part in (_qcapsnets, _progressive, _efficient, _q7) for row in part()}
"""Every row by its name, paper by paper."""


def select(patterns: Iterable[str]) -> tuple[PaperRow, ...]:
    """The rows whose name, paper, network or dataset fits one of the patterns (``*`` and ``?``); all without patterns.

    >>> [row.name for row in select(["q7-mnist-?", "efficient-lite0-*-?5"])]
    ['efficient-lite0-cifar10-75', 'efficient-lite0-cifar10-25', 'q7-mnist-8']

    Raises:
        ConfigError: a pattern that fits none; the message names the nearest.
    """
    patterns = tuple(patterns)
    for pattern in patterns:
        if not any(_fits(row, pattern) for row in ROWS.values()):
            known = [*ROWS, *NETWORKS, *(paper.name for paper in PAPERS)]
            raise ConfigError(
                f"no row fits {pattern!r}{suggest(pattern, known)} (caplet bench papers --list shows all)"
            )
    return tuple(row for row in ROWS.values() if not patterns or any(_fits(row, pattern) for pattern in patterns))


def find_network(name: str) -> PaperNet:
    """The network of a name. Raises ConfigError, with the nearest name, where there is none."""
    if name not in NETWORKS:
        raise ConfigError(f"no row needs a model {name!r}{suggest(name, NETWORKS)} (they need {', '.join(NETWORKS)})")
    return NETWORKS[name]


def _fits(row: PaperRow, pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in (row.name, row.paper.name, row.network.name, row.network.data))
