"""The plan: which format every point of a model has. Plain data, frozen, with a canonical JSON form."""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from caplet.errors import PlanError, nearest
from caplet.files import digest, read_json, write_json
from caplet.fixed import ChannelFormat, FixedFormat, LogFormat, PlanFormat, Rounding, format_from_json
from caplet.fixed.softmax import check_coupling_formats
from caplet.fixed.squash import check_squash_formats
from caplet.models.base import CapsNet
from caplet.nn.points import PointSpec, Role

KIND, VERSION = "caplet-plan", 1
_SHOWN = 3


def sibling(key: str, point: str) -> str:
    """The key of another point of the same layer.

    >>> sibling("block4.skip.coupling", "logits")
    'block4.skip.logits'
    """
    return f"{key.rpartition('.')[0]}.{point}"


def output_axis(spec: PointSpec) -> int:
    """The axis of a weight that counts its output channels.

    >>> from caplet.nn.points import flash
    >>> output_axis(flash("weight", Role.WEIGHT, ("in", "in_dim", "out_dim"), (3, 4, 20)))
    2
    """
    return next(axis for axis, name in enumerate(spec.dims) if name in ("out", "out_dim"))


def rounding_at(fmt: PlanFormat, spec: PointSpec, rounding: Rounding) -> Rounding:
    """How a point of a format is rounded: as the plan says, but powers of two to nearest, and what carries nothing
    alone."""
    if isinstance(fmt, LogFormat):
        return Rounding.NEAREST
    return rounding if spec.carries else rounding.alone


@dataclass(frozen=True)
class QuantPlan:
    """A format for every point, one rounding for all of them, and the seed of its noise.

    Attributes:
        points: format by point key; stored sorted by key and read-only.
        rounding: how values between two codes are resolved. :class:`~caplet.fixed.LogFormat` points are always
            rounded to nearest.
        seed: of the stochastic rounding's noise, 0 .. 2**32 - 1; unused by the other roundings.

    Raises:
        PlanError: a key is not a string, a format is not a format, or the seed is out of range.
    """

    points: Mapping[str, PlanFormat]
    rounding: Rounding = Rounding.NEAREST
    seed: int = 0

    def __post_init__(self) -> None:
        for key, fmt in self.points.items():
            if not isinstance(key, str) or not isinstance(fmt, PlanFormat):
                rule = "a point key -> FixedFormat, LogFormat or ChannelFormat"
                raise PlanError(f"plan: {key!r} -> {fmt!r:.100}; the rule is {rule}")
        if not isinstance(self.rounding, Rounding):
            raise PlanError(f"plan: rounding is {self.rounding!r}; the rule is one of {', '.join(Rounding)}")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or not 0 <= self.seed < 1 << 32:
            raise PlanError(f"plan: seed is {self.seed!r}; the rule is an integer from 0 to 2**32 - 1")
        object.__setattr__(self, "points", MappingProxyType(dict(sorted(self.points.items()))))

    def __hash__(self) -> int:
        return hash(self.digest())

    def __reduce__(self) -> tuple[Any, ...]:
        return QuantPlan, (dict(self.points), self.rounding, self.seed)

    def rounding_of(self, key: str, spec: PointSpec) -> Rounding:
        """The rounding of one point: the plan's, as far as the point can have it."""
        return rounding_at(self.points[key], spec, self.rounding)

    def with_formats(self, formats: Mapping[str, PlanFormat]) -> "QuantPlan":
        """This plan with some points' formats replaced (or added)."""
        return replace(self, points={**self.points, **formats})

    def restricted(self, keys: Collection[str]) -> "QuantPlan":
        """This plan on the points ``keys`` only."""
        return replace(self, points={key: fmt for key, fmt in self.points.items() if key in keys})

    def to_json(self) -> dict[str, Any]:
        """JSON-able form; equal plans give equal objects, with points sorted by key."""
        return {
            "kind": KIND,
            "version": VERSION,
            "rounding": str(self.rounding),
            "seed": self.seed,
            "points": {key: fmt.to_json() for key, fmt in self.points.items()},
        }

    @classmethod
    def from_json(cls, data: object) -> "QuantPlan":
        """Read what :meth:`to_json` wrote.

        Raises:
            PlanError: not such an object, a newer version, or a format out of range; the message names the point.
        """
        fields = {"kind", "version", "rounding", "seed", "points"}
        if not isinstance(data, dict) or data.get("kind") != KIND:
            raise PlanError(f"plan: found {data!r:.100}; the rule is a JSON object whose kind is {KIND!r}")
        if data.get("version") != VERSION:
            raise PlanError(f"plan: version {data.get('version')!r}; this caplet reads version {VERSION}")
        if set(data) != fields or not isinstance(data["points"], dict):
            raise PlanError(f"plan: fields {sorted(map(str, data))}; the rule is exactly {sorted(fields)}")
        points: dict[str, PlanFormat] = {}
        for key, fmt in data["points"].items():
            try:
                points[key] = format_from_json(fmt)
            except PlanError as error:
                raise PlanError(f"plan: point {key!r}: {error}") from None
        rounding = data["rounding"]
        return cls(points, Rounding(rounding) if rounding in list(Rounding) else rounding, data["seed"])

    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON: equal for equal plans, on any machine."""
        return digest(json.dumps(self.to_json(), sort_keys=True, separators=(",", ":")))

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, whole or not at all. Raises ArtefactError when it cannot be written."""
        write_json(path, self.to_json(), "the plan")

    @classmethod
    def load(cls, path: str | Path) -> "QuantPlan":
        """Read a plan file. Raises ArtefactError (unreadable, not JSON) or PlanError (not a plan)."""
        data = read_json(path, "the plan")
        try:
            return cls.from_json(data)
        except PlanError as error:
            raise PlanError(f"{path}: {error}") from None

    def check(self, model: CapsNet) -> None:
        """Raise :class:`PlanError` unless the plan covers exactly the model's points with formats that suit them."""
        specs = model.points()
        missing = [key for key in specs if key not in self.points]
        extra = [key for key in self.points if key not in specs]
        problems = []
        if missing:
            problems.append(f"it misses {_some(missing, self.points)}")
        if extra:
            problems.append(f"it has unknown {_some(extra, specs)}")
        if problems:
            raise PlanError(f"the plan does not fit model {model.family}: {'; '.join(problems)}; was it made for it?")
        for key, spec in specs.items():
            self._check_point(key, spec)
            self._check_functions(key, spec)

    def _check_point(self, key: str, spec: PointSpec) -> None:
        fmt = self.points[key]
        if isinstance(fmt, LogFormat):
            if spec.role is not Role.WEIGHT:
                raise PlanError(f"point {key}: format {fmt}; powers of two are for weights, this is a {spec.role}")
            return
        if isinstance(fmt, ChannelFormat):
            self._check_channels(key, spec, fmt)
        if fmt.signed != spec.signed:
            kinds = ("an unsigned", "a signed")
            raise PlanError(
                f"point {key}: {kinds[fmt.signed]} format {fmt} on {kinds[spec.signed]} point; "
                f"set signed to {str(spec.signed).lower()}"
            )

    @staticmethod
    def _check_channels(key: str, spec: PointSpec, fmt: ChannelFormat) -> None:
        if spec.role is not Role.WEIGHT:
            raise PlanError(f"point {key}: exponents per channel are for weights, this is a {spec.role}")
        axis = output_axis(spec)
        if (fmt.axis, len(fmt.shifts)) != (axis, spec.shape[axis]):
            raise PlanError(
                f"point {key}: {len(fmt.shifts)} exponents on axis {fmt.axis}; the rule is {spec.shape[axis]} on axis"
                f" {axis}, one per output channel"
            )

    def _check_functions(self, key: str, spec: PointSpec) -> None:
        """The limits of the integer softmax and squash whose results this point holds."""
        fmt = self.points[key]
        logits = self.points.get(sibling(key, "logits"))
        before = self.points.get(sibling(key, "preactivation"))
        try:
            if spec.role is Role.COUPLING and isinstance(fmt, FixedFormat):
                logits = logits if isinstance(logits, FixedFormat) else FixedFormat(1, 0, True)
                check_coupling_formats(logits, fmt)
            squashed = spec.role is Role.ACTIVATION and "dim" in spec.dims
            if squashed and isinstance(fmt, FixedFormat) and isinstance(before, FixedFormat):
                check_squash_formats(before, fmt, spec.shape[spec.dims.index("dim")])
        except PlanError as error:
            raise PlanError(f"point {key}: {error}") from None


def _some(keys: list[str], known: Iterable[str]) -> str:
    """Up to three keys, each with the nearest known key, and how many more there are."""
    known = list(known)
    shown = []
    for key in keys[:_SHOWN]:
        near = nearest(key, known, 0.8)
        shown.append(f"{key!r} (found {near!r})" if near else repr(key))
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return f"point{'s' if len(keys) > 1 else ''} {', '.join(shown)}{more}"
