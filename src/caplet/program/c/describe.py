"""Every op of a Program as the descriptor that the C runtime takes: one function per op.

The same descriptors become C text in an exported model and memory in the host runtime.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from caplet.errors import PlanError
from caplet.fixed.format import FixedFormat, LogFormat
from caplet.fixed.packing import pack_bits
from caplet.fixed.rounding import Rounding, noise_keys
from caplet.fixed.softmax import negative_exponential, sum_bits, uniform_coupling
from caplet.program import ops
from caplet.program.c.structure import KERNEL, Identifiers, Ref, Struct, Value, constants, structures
from caplet.program.op import Op, bias_frac
from caplet.program.program import Program
from caplet.program.scratch import divide, needs_unpacking, routing_rows, unpacked_bytes, votes_together
from caplet.program.tensor import Constant, IntArray, TensorSpec, WideFormat
from caplet.program.verify import Proof
from caplet.registry import Registry

_INT8, _UINT8, _INT16, _UINT16 = (constants()[f"CAPLET_{sign}INT{bits}"] for bits in (8, 16) for sign in ("", "U"))
_SIGNED, _UNSIGNED, _POWERS = (constants()[f"CAPLET_{kind}"] for kind in ("SIGNED", "UNSIGNED", "POWERS"))


@dataclass
class Descriptions:
    """Descriptors of the ops of one Program, and the arrays that they refer to: of one axis, of structures of one type.

    unpacked: constants are arrays of int8 or int16 instead of bit-packed, where there is memory for them. rooms,
    stored and behind: of :class:`caplet.program.arena.MemoryMap`; all votes where ``stored`` says nothing.
    """

    program: Program
    proof: Proof
    unpacked: bool = False
    rooms: Mapping[str, int] = field(default_factory=dict)
    stored: Mapping[str, int] = field(default_factory=dict)
    behind: Mapping[str, int] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    structs: dict[str, tuple[Struct, ...]] = field(default_factory=dict)
    names: Identifiers = field(default_factory=Identifiers)

    def of(self, op: Op) -> Struct:
        """The descriptor of ``op``; its constants are added to ``arrays``. Raises PlanError where C has no type."""
        kind = f"caplet_{'conv' if isinstance(op, ops.Convolution) else op.kind}_op"
        values = DESCRIPTORS[type(op)](op, self)
        names = (name for name, *_ in structures()[kind])
        return Struct(kind, {name: values[name] if name in values else self._common(op, name) for name in names})

    def _common(self, op: Op, field: str) -> Value:
        """A field that means the same for every op: of the op itself, of its input, its output or its accumulator."""
        if field == "out":
            return self.format(op.outputs[0])
        if field == "in_type":
            return element_type(self.spec(op.inputs[0]))
        if field == "wide":
            return int(self.proof.find(op.name, "acc").bytes == 8)
        value = getattr(op, field)
        return self.format(value) if isinstance(value, str) else int(value)

    def array(self, key: str, values: np.ndarray) -> Ref:
        name = self.names.of(f"table {key}")
        self.arrays[name] = np.ascontiguousarray(values).reshape(-1)
        return Ref(name)

    def constant(self, constant: Constant | None, order: Callable[[IntArray], IntArray] | None = None) -> Struct:
        """A constant's codes; order: how they lie in memory, where that is not as in the Program."""
        if constant is None:
            return Struct("caplet_constant", {"data": Ref(), "bits": 0, "kind": _SIGNED})
        fmt, bits = constant.format, constant.format.bits
        codes = order(constant.codes) if order else constant.codes
        kind = _POWERS if isinstance(fmt, LogFormat) else _SIGNED if fmt.signed else _UNSIGNED
        if self.unpacked and (bits, kind) != (16, _UNSIGNED):
            bits, kind = 8 * unpacked_bytes(constant), _SIGNED
            values = (order(constant.integers) if order else constant.integers).astype(f"int{bits}")
        else:
            values = codes.astype(np.int16) if (bits, kind) == (16, _SIGNED) else pack_bits(codes, bits, fmt.signed)
            if 2 <= bits <= 7:
                # Kernels unpack eight codes at a time, and read words.
                values = np.pad(values, (0, -len(values) % bits + (bits == 3)))
        return Struct("caplet_constant", {"data": self.array(constant.key, values), "bits": bits, "kind": kind})

    def format(self, name: str, relu: bool = False, high: int | None = None) -> Struct:
        """How tensor ``name`` is written; ``high``: the largest code, where it is not the format's."""
        spec = self.program.tensors[name]
        fmt = fixed(spec)
        keys = noise_keys(self.program.seed, name) if spec.rounding is Rounding.STOCHASTIC else (0, 0)
        low, high = max(fmt.min_code, 0) if relu else fmt.min_code, fmt.max_code if high is None else high
        values = (low, high, *keys, element_type(spec), constants()[f"CAPLET_{spec.rounding.name}"], fmt.frac_bits)
        return Struct("caplet_format", _named("low high noise_a noise_b type rounding frac", values))

    def accumulator(
        self, op: Op, product_frac: int, bias: Constant | None, shifts: IntArray | None = None, what: str = "acc"
    ) -> Struct:
        """The accumulator ``what`` of ``op``. shifts: exponents of the output channels."""
        bound = self.proof.find(op.name, what)
        place = Ref() if shifts is None else self.array(f"{op.name}/channel_shifts", shifts.astype(np.int8))
        wide = _named("wide wide_products", (int(bound.bytes == 8), int(bound.products >= 1 << 31)))
        fracs = _named("product_frac bias_frac", (product_frac, bias_frac(bias) or 0))
        fields = {"channel_shifts": place, "bias": self.constant(bias), **fracs, **wide}
        return Struct("caplet_accumulator", fields)

    def squash(self, source: str, out: str) -> Ref:
        """The kernel that squashes tensor ``source`` to ``out``: for few capsules one that others need anyway."""
        few, every = self.spec(source).elements <= 256, squashes(self.program)
        shared = few and not self.unpacked and not all(self._squashes_bytes(*names) for names in every)
        return _kernel("squash_bytes" if self._squashes_bytes(source, out) and not shared else "squash_any")

    def _squashes_bytes(self, source: str, out: str) -> bool:
        x, y = self.spec(source), self.spec(out)
        fits = element_type(x) == element_type(y) == _INT8 and y.rounding is not Rounding.STOCHASTIC
        return fits and 0 <= x.format.frac_bits < 15 and 0 <= y.format.frac_bits <= 11

    def needs_unpacking(self, weight: Constant) -> bool:
        return needs_unpacking(weight) and not (self.unpacked and unpacked_type(weight) != _UINT16)

    def unpack(self, weight: Constant) -> Value:
        """The kernel that unpacks weights; NULL where none does."""
        fmt = weight.format
        eights = isinstance(fmt, FixedFormat) and fmt.signed and 2 <= fmt.bits <= 7
        return _kernel(f"unpack_{fmt.bits}" if eights else "unpack", self.needs_unpacking(weight))

    def spec(self, name: str) -> TensorSpec:
        return self.program.tensors[name]


def squashes(program: Program) -> list[tuple[str, str]]:
    """What each op squashes, and to what."""
    routings = [(op.preactivation, op.activation) for op in program.ops if isinstance(op, ops.Routing)]
    return routings + [(op.input, op.output) for op in program.ops if isinstance(op, ops.Squash)]


def fixed(spec: TensorSpec) -> FixedFormat:
    """The format of a tensor of codes."""
    if isinstance(spec.format, WideFormat):
        raise PlanError(f"tensor {spec.name}: {spec.format}; the rule is that ops read codes of at most 16 bits")
    return spec.format


def element_type(spec: TensorSpec) -> int:
    """CAPLET_INT8 .. CAPLET_UINT16 of a tensor of codes."""
    fixed(spec)
    return constants()[f"CAPLET_{spec.c_type.removesuffix('_t').upper()}"]


def unpacked_type(weight: Constant) -> int:
    """CAPLET_INT8, CAPLET_INT16 or CAPLET_UINT16: of weights after unpacking."""
    if unpacked_bytes(weight) == 1:
        return _INT8
    wide = isinstance(weight.format, FixedFormat) and not weight.format.signed and weight.format.bits == 16
    return _UINT16 if wide else _INT16


def _kernel(name: str, needed: bool = True) -> Ref:
    """A function of the runtime, or NULL."""
    return Ref(f"{KERNEL}{name}" if needed else "")


def codes_type(spec: TensorSpec) -> int:
    """:func:`element_type`, but CAPLET_INT16 for unsigned codes that are the same as int16: kernels take those."""
    found = element_type(spec)
    return _INT16 if found == _UINT16 and fixed(spec).max_code <= 32767 else found


def in_pairs(rows: IntArray) -> IntArray:
    """Rows (groups, N, K) two by two, element by element: (groups, N / 2, K, 2), flat; a last one as it is."""
    groups, count, size = rows.shape
    even = count // 2 * 2
    pairs = rows[:, :even].reshape(groups, -1, 2, size).swapaxes(2, 3).reshape(groups, -1)
    return np.concatenate([pairs, rows[:, even:].reshape(groups, -1)], axis=1)


DESCRIPTORS: Registry[type[Op], Callable[..., dict[str, Value]]] = Registry("C descriptor of op")
"""``(op, descriptions)`` -> the fields of the op's structure, but those that :meth:`Descriptions.of` adds."""


@DESCRIPTORS.of(ops.InputQuantize)
def _input_quantize(op: ops.InputQuantize, to: Descriptions) -> dict[str, Value]:
    rows, columns, channels = to.spec(op.input).shape
    return {"table": to.constant(op.table), "pixels": rows * columns, "channels": channels}


@DESCRIPTORS.of(ops.Conv2d)
@DESCRIPTORS.of(ops.ConvVotes)
def _convolution(op: ops.Convolution, to: Descriptions) -> dict[str, Value]:
    source = to.spec(op.input)
    out, *kernel = op.weight.shape
    product = source.format.frac_bits + op.weight.format.frac_bits
    groups = op.groups if isinstance(op, ops.Conv2d) else 1
    division = divide(op, to.rooms.get(op.name, 0), op.name in to.behind)
    acc = to.proof.find(op.name, "acc")
    types = (codes_type(source), unpacked_type(op.weight))
    any_type = acc.products >= 1 << 31 or _UINT16 in types
    store = acc.bytes == 8 or to.spec(op.output).rounding is Rounding.STOCHASTIC
    codes = {_INT8: "signed", _UINT8: "unsigned"}.get(types[0], "words")
    whole = codes != "words" and types[1] == _INT8 and not store  # bytes throughout
    return {
        "spread": _kernel("spread_words" if codes == "words" else f"{'spread' if whole else 'widen'}_{codes}"),
        "multiply": _kernel("multiply_words" if types[1] != _INT8 else f"multiply_{'bytes' if whole else 'mixed'}"),
        "any": _kernel("convolve_any", any_type),
        "store": _kernel("store_any", store),
        "unpack": to.unpack(op.weight),
        "weight": to.constant(op.weight, lambda codes: in_pairs(codes.reshape(groups, out // groups, -1))),
        "acc": to.accumulator(op, product, op.bias, op.channel_shifts),
        "out": to.format(op.output, op.relu, op.high) if isinstance(op, ops.Conv2d) else to.format(op.output),
        **_named("in_rows in_columns in_channels", source.shape),
        **_named("out_rows out_columns out_channels", (*op.positions(to.program.tensors), out)),
        **_named("kernel_rows kernel_columns depth", kernel),
        "types": op.in_types if isinstance(op, ops.ConvVotes) else 1,
        "top": op.padding,
        "in_type": codes_type(source),
        **_named("block taps held", (division.block, division.taps, int(division.held))),
    }


@DESCRIPTORS.of(ops.MaxPool2d)
def _max_pool2d(op: ops.MaxPool2d, to: Descriptions) -> dict[str, Value]:
    return {
        **_named("in_rows in_columns channels", to.spec(op.input).shape),
        **_named("out_rows out_columns channels", to.spec(op.output).shape),
        "right": int(op.shifts(to.program.tensors).out),
        "top": op.padding,
    }


@DESCRIPTORS.of(ops.ChannelAffine)
def _channel_affine(op: ops.ChannelAffine, to: Descriptions) -> dict[str, Value]:
    rows, columns, channels = to.spec(op.input).shape
    product = to.spec(op.input).format.frac_bits + op.scale.format.frac_bits
    constants = {"scale": to.constant(op.scale), "acc": to.accumulator(op, product, op.offset)}
    return {**constants, "pixels": rows * columns, "channels": channels}


@DESCRIPTORS.of(ops.LeakyRelu)
def _leaky_relu(op: ops.LeakyRelu, to: Descriptions) -> dict[str, Value]:
    return {"count": to.spec(op.input).elements, "right": int(op.shifts(to.program.tensors).out)}


@DESCRIPTORS.of(ops.Listing)
def _listing(op: ops.Listing, to: Descriptions) -> dict[str, Value]:
    rows, columns, channels = to.spec(op.input).shape
    return {"pixels": rows * columns, "channels": channels}


@DESCRIPTORS.of(ops.Squash)
def _squash(op: ops.Squash, to: Descriptions) -> dict[str, Value]:
    source = to.spec(op.input)
    fields = {"count": source.elements // op.dim, "in_frac": source.format.frac_bits}
    return {"kernel": to.squash(op.input, op.output), **fields}


@DESCRIPTORS.of(ops.Add)
def _add(op: ops.Add, to: Descriptions) -> dict[str, Value]:
    shifts = op.shifts(to.program.tensors)
    types = {"a_type": element_type(to.spec(op.a)), "b_type": element_type(to.spec(op.b))}
    lefts = _named("a_left b_left right", (int(shifts.acc), int(shifts.bias), int(shifts.out)))
    return {"count": to.spec(op.output).elements, **types, **lefts}


@DESCRIPTORS.of(ops.DenseVotes)
def _dense_votes(op: ops.DenseVotes, to: Descriptions) -> dict[str, Value]:
    _, in_dim, votes = op.weight.shape
    sources, lifts = [], lifts_of(op, to)
    for source in op.sources:
        spec = to.spec(source)
        shape = (spec.shape[0], 1, 1) if len(spec.shape) == 2 else (*spec.shape[:2], spec.shape[2] // in_dim)
        product = spec.format.frac_bits + op.weight.format.frac_bits
        shifts = None if lifts is not None and not to.unpacked else op.channel_shifts
        acc = to.accumulator(op, product, None, shifts, f"acc:{source}")
        fields = {"acc": acc, **_named("rows columns types", shape), "type": codes_type(spec)}
        sources.append(Struct("caplet_source", fields))
    name = to.names.of(f"table {op.name}/sources")
    to.structs[name] = tuple(sources)
    selected = Ref()
    if op.selected is not None:
        selected = to.array(f"{op.name}/selected", np.array(op.selected, dtype=np.uint16))
    weight = to.constant(op.weight, lambda codes: in_pairs(codes.transpose(0, 2, 1)))
    common = max(to.spec(source).format.frac_bits for source in op.sources) + op.weight.format.frac_bits
    bits = 24 - fixed(to.spec(op.output)).bits
    values = (len(sources), in_dim, votes, votes_together(op.weight), common, bits)
    counts = _named("source_count in_dim votes block carry_frac carried_bits", values)
    return {
        "kernel": _vote_kernel(op, to, lifts is not None),
        "unpack": to.unpack(op.weight),
        "lifts": Ref() if lifts is None else to.array(f"{op.name}/lifts", lifts.astype(np.uint8)),
        **{"sources": Ref(name), "selected": selected, "weight": weight, **counts},
    }


def all_of_bytes(op: ops.DenseVotes, to: Descriptions) -> bool:
    """Whether votes, capsules and weights are bytes, sums of 32 bits, and no noise is added."""
    out = to.spec(op.output)
    narrow = all(to.proof.find(op.name, f"acc:{source}").bytes == 4 for source in op.sources)
    one_byte = all(codes_type(to.spec(source)) in (_INT8, _UINT8) for source in op.sources) and out.element_bytes == 1
    exact = out.rounding is not Rounding.STOCHASTIC
    return exact and narrow and one_byte and unpacked_type(op.weight) == _INT8 and op.weight.shape[1] <= 64


def lifts_of(op: ops.DenseVotes, to: Descriptions) -> IntArray | None:
    """Left shifts (votes,) of the sums of signed votes, all of bytes, so that codes of 8 bits begin at bit 16: of votes
    that carry, or with formats of their own. None where sums do not fit, or votes are others."""
    out, tensors = to.spec(op.output), to.program.tensors
    fmt, common = fixed(out), max(to.spec(name).format.frac_bits for name in op.sources)
    apart = out.rounding is Rounding.CARRY or op.channel_shifts is not None
    if not fmt.signed or not apart or not all_of_bytes(op, to):
        return None
    ups = [common - to.spec(name).format.frac_bits for name in op.sources]
    bounds = [to.proof.find(op.name, f"acc:{name}").products << up for name, up in zip(op.sources, ups, strict=True)]
    right = op.shifts(tensors, op.sources[ups.index(0)]).out
    lifts = 24 - fmt.bits - np.broadcast_to(right, op.weight.shape[2:])
    fits = lifts.min() >= 0 and (max(bounds) << int(lifts.max())) + (1 << (24 - fmt.bits)) < 1 << 31
    return lifts if fits and max(ups) <= 7 else None


def _vote_kernel(op: ops.DenseVotes, to: Descriptions, lifted: bool) -> Ref:
    out, dim = to.spec(op.output), op.weight.shape[1]
    carries, each = out.rounding is Rounding.CARRY, f"_{dim}" if dim in (4, 8) else ""
    if lifted:
        return _kernel(f"vote_{'carried' if carries else 'channels'}{each}")
    if carries:
        return _kernel("vote_carried_any")
    fracs = [to.spec(source).format.frac_bits for source in op.sources]
    rights = [frac + op.weight.format.frac_bits - out.format.frac_bits for frac in fracs]
    if op.channel_shifts is not None or not all_of_bytes(op, to) or min(rights) < 0 or max(rights) > 30:
        return _kernel("vote_any")
    whole = fixed(out) == FixedFormat(8, out.format.frac_bits, True)
    return _kernel(f"vote_bytes{each}" if whole else "vote_bytes")


@DESCRIPTORS.of(ops.Routing)
def _routing(op: ops.Routing, to: Descriptions) -> dict[str, Value]:
    votes = to.spec(op.votes)
    product = to.spec(op.coupling).format.frac_bits + votes.format.frac_bits
    routed = op.logits is not None
    activation, coupling = to.spec(op.activation), to.spec(op.coupling)
    narrow = to.proof.find(op.name, "acc").bytes == 4 and element_type(votes) == _INT8
    brief = votes.shape[1] * votes.shape[2] <= 8192  # vectors of 16 bits count the votes of seven rows
    six = "_6" if votes.shape[2] == 6 else ""
    weigh = f"weigh_bytes{six}" if narrow and brief and fixed(coupling).max_code <= 32767 else "weigh_any"
    logits = to.spec(op.logits or op.coupling)
    types = {element_type(activation), element_type(logits)}
    update = "update_any"
    if routed and narrow_agreement(op, to) and types <= {_INT8, _INT16}:
        whole = fixed(logits).bits == 8 and votes.shape[2] in (6, 16)
        update = f"update_bytes_{votes.shape[2]}" if whole else "update_bytes"
        update = "update_mixed" if _INT16 in types else update
    exponentials, scale = Ref(), sum_bits(votes.shape[1])
    noisy = coupling.rounding is Rounding.STOCHASTIC
    if op.logits is not None and not noisy and (fmt := fixed(to.spec(op.logits))).bits <= 8 and fmt.signed:
        key = f"exponentials {fmt.bits} {fmt.frac_bits} {scale}"
        values = negative_exponential(np.arange(1 << fmt.bits), fmt.frac_bits, scale)
        exponentials = to.array(key, values.astype(np.uint32))
    return {
        "weigh": _kernel(weigh),
        "add": _kernel("add_bytes", narrow),
        "update": _kernel(update, routed),
        "squash": to.squash(op.preactivation, op.activation),
        "couple": _kernel("couple_any" if noisy else "couple", routed or noisy),
        "compute": _kernel("exponentials", routed and not exponentials.name),
        "exponentials": exponentials,
        "acc": to.accumulator(op, product, op.bias),
        # With one iteration there are no logits, and the runtime does not look at their format.
        "logits": to.format(op.logits or op.coupling),
        **_named("inputs outputs dim", votes.shape),
        "rows": routing_rows(votes.shape[1], to.stored.get(op.votes, votes.shape[0]) < votes.shape[0]),
        "agreement_shift": op.agreement_shift(to.program.tensors) if routed else 0,
        "agreement_wide": int(routed and to.proof.find(op.name, "agreement").bytes == 8),
        "votes_type": element_type(votes),
        "scale_bits": scale,
        "uniform": 0 if noisy else uniform_coupling(votes.shape[1], fixed(coupling), coupling.rounding),
    }


def narrow_agreement(op: ops.Routing, to: Descriptions) -> bool:
    """Whether logits change by int32 agreements with votes of bytes, by a right shift without noise."""
    exact = element_type(to.spec(op.votes)) == _INT8
    exact &= to.spec(op.logits or op.coupling).rounding is not Rounding.STOCHASTIC
    small = to.proof.find(op.name, "agreement").bytes == 4 and to.spec(op.votes).shape[2] <= 64
    return exact and small and 0 <= op.agreement_shift(to.program.tensors) <= 30


@DESCRIPTORS.of(ops.Lengths)
def _lengths(op: ops.Lengths, to: Descriptions) -> dict[str, Value]:
    wide = int(to.spec(op.output).format.bits == 64)
    return {**_named("count dim", to.spec(op.input).shape), "wide": wide}


def _named(names: str, values: Iterable[Value]) -> dict[str, Value]:
    return dict(zip(names.split(), values, strict=True))
