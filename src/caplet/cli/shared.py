"""Options that many commands have: a run's folder, a dataset, and single ones."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from caplet.cli.options import DATA, OUTPUT
from caplet.cli.output import note
from caplet.errors import ConfigError
from caplet.settings import Many, Settings, Side, option, parse_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from caplet.api import CapsNet, Program
    from caplet.data import Splits

_RANDOM = 1 << 29
Model = TypeVar("Model", bound="CapsNet | Program")
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout instead of tables.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars, no notes.")]
FloatModel = Annotated[
    Path, typer.Argument(help="A trained float model: .safetensors, a .pt / .h5 to import, or trained:NAME.")
]
Changes = Annotated[
    list[str] | None, typer.Option("--set", help="Change one setting, e.g. --set lr=1e-3. May be repeated.")
]
Limit = Annotated[
    int | None, typer.Option("--limit", help="Use only so many images of each split.", rich_help_panel=DATA)
]
Memory = Annotated[
    str | None,
    typer.Option("--memory", help="Memory that training keeps to, e.g. 8GB. Default: most of the machine's."),
]
_DEVICE = "Where networks compute: auto, cpu, cuda, mps. auto: training and pruning take a GPU, searches the CPU."
Device = Annotated[str, typer.Option("--device", help=_DEVICE, rich_help_panel="Run")]
Engine = Annotated[
    Literal["auto", "native", "interpreter"],
    typer.Option(
        "--engine", help="What runs the integers: compiled C, or the reference interpreter.", rich_help_panel="Run"
    ),
]


class ImportOptions(Settings):
    """What the file of an imported model leaves open."""

    image_size: Side | None = option(None, DATA)
    """Image side of an imported model, where its file leaves it open."""
    assume: dict[str, str] = option({}, DATA)
    """What an imported model's file does not say, such as activation=leaky_relu:0.3, iterations=3, padding=same,
    strides=1,2, channels=bgr or normalize=mean,std. May be repeated."""

    def load(self, path: Path) -> "CapsNet | Program":
        """Any model file. Raises ModelError, ArtefactError."""
        from caplet.api import load

        return _said(load(path, self.image_size, self.assume))

    def load_float(self, path: Path) -> "CapsNet":
        """As :meth:`load`, for a float model."""
        from caplet.api import load_float

        return _said(load_float(path, self.image_size, self.assume))


def _said(model: Model) -> Model:
    """The model, after a line on stderr about what was assumed of it."""
    if text := getattr(model, "assumed", ""):
        note(f"assumed: {text}")
    return model


def origin(model: "CapsNet | Program") -> dict[str, Any]:
    """What was assumed, stated, left out and converted where a model was imported, for ``--json``."""
    notes = getattr(model, "notes", {})
    return {"assumed": notes.get("assumed", {}), "stated": notes.get("stated", {}), "read": notes.get("read", [])}


class RunOptions(Settings):
    """Where a run's files go, and what is shown."""

    out: Path | None = option(None, OUTPUT)
    """Run folder. Default: a folder in runs/, named after the model."""
    resume: bool = option(False, OUTPUT)
    """Go on with an interrupted run."""
    force: bool = option(False, OUTPUT)
    """Use the folder whatever it holds; files of the same name are overwritten."""
    quiet: bool = option(False, OUTPUT)
    """No progress bars, no notes."""
    as_json: bool = option(False, OUTPUT, flag="--json")
    """Print one JSON object on stdout instead of tables."""

    @property
    def begun(self) -> dict[str, Any]:
        """How the run's folder is opened."""
        return {"resume": self.resume, "force": self.force}

    def note(self, text: str) -> None:
        """A line on stderr, unless ``--quiet``."""
        if not self.quiet:
            note(text)

    def folder(self, model: Path, suffix: str) -> Path:
        """The run folder: ``--out``, or ``runs/NAME-SUFFIX``; runs/NAME/model.safetensors has the name NAME."""
        name = (model.resolve().parent.name if model.stem == "model" else model.stem).replace(":", "-")
        return self.out or Path("runs") / f"{name}-{suffix}"


class FileOptions(Settings):
    """Where a dataset's files are, and what becomes of its images."""

    root: Path | None = option(None, DATA)
    """Folder (or archive) where the dataset's files already are; otherwise downloaded."""
    size: Side | None = option(None, DATA)
    """Resize images to this many rows and columns."""
    channels: int | None = option(None, DATA, ge=1, le=3)
    """1 for gray, 3 for RGB."""
    background: str | None = option(None, DATA)
    """Colour under transparent pixels, such as white or #808080. Default: white or black, whatever shows more."""


class ImageOptions(FileOptions):
    """Test images of a dataset, or random ones."""

    data: str = option("", DATA)
    """Dataset whose test images are run. Default: random images."""
    labels_by_order: bool = option(False, DATA)
    """Pair the data's classes with the model's in their order, whatever both call them."""

    def load(self, progress: bool, limit: int | None = None, *models: "CapsNet | Program | None") -> "Splits":
        """The splits, their classes in the models' order. Raises DataError, ConfigError, ModelError."""
        from caplet.api import load_data
        from caplet.jobs.run import check

        self.check_size(*models)
        splits = load_data(self.data, **self.model_dump(exclude={"data"}), limit=limit, progress=progress)
        return check(splits, *models, note=note)

    def check_size(self, *models: "CapsNet | Program | None") -> None:
        """Raise ModelError where the size or channels asked for are not a model's, before any image is read."""
        from caplet.jobs.run import check_size

        for model in models:
            check_size(model, self.size, self.channels)

    def pixels(
        self, images: int, model: "CapsNet | Program", progress: bool = False, calibration: bool = False
    ) -> tuple["NDArray[np.uint8]", dict[str, str]]:
        """Evenly spaced images of the test split, or of ``calibration``, or random ones of the model's shape.

        They are uint8 (N, C, H, W); for --json their note.
        """
        import numpy as np

        from caplet.api import CapsNet

        if not self.data:
            shape = model.config.image if isinstance(model, CapsNet) else model.image_shape
            if images * math.prod(shape) > _RANDOM:
                raise ConfigError(f"--images {images}: more than {_RANDOM:,} bytes of random images")
            return np.random.default_rng(0).integers(0, 256, (images, *shape), dtype=np.uint8), {"data_note": ""}
        splits = self.load(progress, None, model)
        split = splits.calibration if calibration else splits.test
        return split.evenly_spaced(images).images.numpy(), {"data_note": splits.info["note"]}


class DataOptions(ImageOptions):
    """A dataset with its three splits."""

    data: str = option("digits", DATA)
    """Dataset name (mnist, fashion-mnist, cifar10, svhn, digits, ...), or path of a folder, archive, .npz or .csv."""
    calibration_size: Many | None = option(None, DATA)
    """Images cut from the training split for calibration and search."""


def bytes_of(text: str | None) -> int | None:
    """Bytes of ``8GB``; None of nothing. Raises ConfigError."""
    return None if text is None else parse_bytes(text)


def parse_ram(text: str) -> str | int:
    """``fast``, ``small``, or bytes as :func:`parse_bytes`."""
    return text if text in ("fast", "small") else parse_bytes(text)
