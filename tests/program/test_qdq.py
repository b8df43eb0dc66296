"""A Program as ONNX in QDQ form: types, scales and kernels as promised, codes close to the Program's."""

from typing import Any

import numpy as np
import pytest

from caplet.fixed import Rounding
from caplet.lower import lower
from caplet.program import run
from caplet.program.onnx.graph import Graph
from caplet.program.onnx.qdq import QDQ, Floats, to_qdq
from caplet.program.ops import Convolution, DenseVotes
from random_ops import RandomOps
from sample_programs import SampleSettings, sample_backbone, sample_deep, sample_shallow
from single_op import SingleOp
from tiny_networks import INTEGER, mixed_plan, tiny

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")


def session(model: Any, optimized: bool = True, path: str = "") -> Any:
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.optimized_model_filepath = path
    if not optimized:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def constants(model: Any) -> dict[str, np.ndarray]:
    return {part.name: onnx.numpy_helper.to_array(part) for part in model.graph.initializer}


@pytest.mark.parametrize(
    ("name", "rounding"),
    [
        *((name, (Rounding.NEAREST, Rounding.TRUNCATE)[index % 2]) for index, name in enumerate(INTEGER)),
        ("shallow", Rounding.STOCHASTIC),
        ("shallow", Rounding.CARRY),
        ("deep", Rounding.CARRY),
    ],
)
def test_networks_of_bytes(name: str, rounding: Rounding) -> None:
    made = tiny(name)
    program = lower(made.model, mixed_plan(name, 6, 8, rounding, channels=rounding is Rounding.NEAREST, seed=3))
    model, images = to_qdq(program), made.images.numpy()
    onnx.checker.check_model(model, full_check=True)
    assert [item.version for item in model.opset_import] == [18]
    assert not program.wide
    values = constants(model)
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            step, zero = values[node.input[1]], values[node.input[2]]
            assert zero == 0
            assert zero.dtype in (np.int8, np.uint8)
            assert np.log2(step) == np.round(np.log2(step))
    expected = run(program, images)
    for optimized in (False, True):
        prediction, capsules, lengths = session(model, optimized).run(None, {"images": images})
        assert capsules.dtype == np.int32
        np.testing.assert_array_equal(lengths, (capsules.astype(np.int64) ** 2).sum(axis=2))
        np.testing.assert_array_equal(prediction, lengths.argmax(axis=1))
        gap = np.abs(capsules - expected.capsules)
        # Few channels of few bits, up to 30 layers: one code that differs moves many.
        assert gap.mean() < (3 if rounding is Rounding.STOCHASTIC else 1), f"{name} {optimized}"
        assert (prediction == expected.predictions).mean() > 0.75, f"{name} {optimized}"


@pytest.mark.parametrize("name", ["shallow", "deep", "backbone"])
def test_wider_codes_are_of_16_bits(name: str) -> None:
    made = tiny(name)
    program = lower(made.model, mixed_plan(name, 9, 12, seed=1))
    model, images = to_qdq(program), made.images.numpy()
    onnx.checker.check_model(model, full_check=True)
    assert [item.version for item in model.opset_import] == [21]
    weights = {op.weight.key for op in program.ops if isinstance(op, Convolution | DenseVotes)}
    assert set(program.wide) >= weights | {op.output for op in program.ops[1:-1] if op.kind != "routing"}
    values = constants(model)
    zeros = {values[node.input[2]].dtype for node in model.graph.node if node.op_type == "QuantizeLinear"}
    assert zeros <= {np.dtype(np.int16), np.dtype(np.uint16)}
    _, capsules, _ = session(model).run(None, {"images": images})
    gap = np.abs(capsules - run(program, images).capsules)
    assert gap.max() <= 2
    assert (gap == 0).mean() > 0.9


def test_kernels_of_int8_take_the_products(tmp_path: Any) -> None:
    made = tiny("shallow")
    program = lower(made.model, mixed_plan("shallow", 8, 8))
    path = tmp_path / "optimized.onnx"
    session(to_qdq(program), path=str(path))
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds.count("QLinearConv") == sum(op.kind == "conv2d" for op in program.ops)
    assert "Conv" not in kinds
    assert kinds.count("MatMulIntegerToFloat") >= 1  # the votes


def single(op: SingleOp, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The codes that one op writes, by onnxruntime as the file says, in the order of their memory."""
    work = Floats(op._program, Graph())
    feeds = {}
    for name, codes in inputs.items():
        if op.op.kind == "input_quantize":
            feeds["images"] = codes.transpose(0, 3, 1, 2).astype(np.uint8)
            break
        value = codes * work.fixed(name).step
        if op.op.kind == "routing":
            value = value.transpose(0, 2, 1, 3)
        feeds[name] = (
            value.transpose(0, 3, 1, 2) if len(op._tensors[name].shape) == 3 and op.op.kind != "routing" else value
        ).astype(np.float32)
        work.values[name] = name
    QDQ[type(op.op)](op.op, work)
    [out] = [name for name in op.op.outputs if name in work.values]
    kinds = {np.dtype(np.uint8): 2, np.dtype(np.float32): 1}
    graph = onnx.helper.make_graph(
        work.graph.nodes,
        "one",
        [onnx.helper.make_tensor_value_info(key, kinds[value.dtype], value.shape) for key, value in feeds.items()],
        [onnx.helper.make_tensor_value_info(work.values[out], 1, None)],
        work.graph.initializers,
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    [found] = session(model, optimized=False).run(None, feeds)
    found = found.astype(np.float64) / work.fixed(out).step
    if op.op.kind in ("dense_votes", "conv_votes"):
        return {out: found.transpose(0, 2, 1, 3)}
    return {out: found.transpose(0, 2, 3, 1) if found.ndim == 4 else found}


EXACT = ("input_quantize", "max_pool2d", "channel_affine", "leaky_relu", "add", "listing", "dense_votes")


@pytest.mark.parametrize("kind", [*EXACT, "conv2d", "conv_votes", "squash"])
def test_ops_of_bytes(kind: str) -> None:
    draw, gaps, cases = RandomOps((7, len(kind))), [], 0
    while cases < 40:
        op = draw.draw(kind)
        if op._program.wide or any(spec.rounding is Rounding.STOCHASTIC for spec in op._tensors.values()):
            continue
        inputs = draw.inputs(op, 6)
        expected = op.interpret(inputs)
        for name, found in single(op, inputs).items():
            gaps.append(np.abs(found - expected[name]).ravel())
        cases += 1
    gap = np.concatenate(gaps)
    if kind in EXACT:
        assert not gap.any()
    else:
        assert gap.max() <= 1
        assert (gap > 0).mean() < 0.02


def test_halves_round_up_where_a_filter_has_room() -> None:
    """Products that end in halves: with filters of 6 bits and less no code differs, though runtimes round to even."""
    program = sample_shallow(settings=SampleSettings(weight_bits=4))
    [conv] = [op for op in program.ops if op.name == "conv1"]
    op = SingleOp(conv, {name: program.tensors[name] for name in (conv.input, conv.output)})
    codes = np.random.default_rng(0).integers(0, 256, (50, *program.tensors[conv.input].shape)).astype(np.int32)
    expected = op.interpret({conv.input: codes})[conv.output]
    assert op.op.shifts(program.tensors).out >= 2
    np.testing.assert_array_equal(single(op, {conv.input: codes})[conv.output], expected)


def test_programs_of_every_kind_of_op() -> None:
    for program in (sample_deep(), sample_backbone(), sample_shallow(settings=SampleSettings(selected=True))):
        images = np.random.default_rng(1).integers(0, 256, (20, *program.image_shape), dtype=np.uint8)
        _, capsules, _ = session(to_qdq(program)).run(None, {"images": images})
        assert np.abs(capsules - run(program, images).capsules).mean() < 2, program.name
