"""A Program as an ONNX graph: the same integers in onnxruntime, for every op and every rounding."""

from typing import Any

import numpy as np
import pytest

from caplet.errors import ToolMissing
from caplet.fixed import FixedFormat, Rounding, rounding_shift, softmax, squash
from caplet.lower import lower
from caplet.program import Program, run
from caplet.program.onnx import graph as functions
from caplet.program.onnx.graph import Graph, require_onnx
from caplet.program.onnx.translate import to_onnx
from tiny_networks import INTEGER, mixed_plan, tiny


def test_without_onnx_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caplet.program.onnx.graph.find_spec", lambda name: None)
    with pytest.raises(ToolMissing, match=r"pip install 'caplet\[onnx\]'"):
        require_onnx()


@pytest.fixture(scope="module")
def runtime() -> Any:
    pytest.importorskip("onnx")
    return pytest.importorskip("onnxruntime")


def compare(runtime: Any, program: Program, images: np.ndarray) -> None:
    session = runtime.InferenceSession(to_onnx(program).SerializeToString())
    prediction, capsules, lengths = session.run(["prediction", "capsules", "lengths"], {"images": images})
    expected = run(program, images)
    assert capsules.dtype == np.int32
    np.testing.assert_array_equal(capsules, expected.capsules)
    np.testing.assert_array_equal(lengths, expected.lengths)
    np.testing.assert_array_equal(prediction, expected.predictions)
    assert np.any(capsules) or not images.any(), "a dead network shows nothing"


@pytest.mark.parametrize(
    ("name", "rounding"),
    [
        *((name, list(Rounding)[index % 3]) for index, name in enumerate(INTEGER)),
        ("deep", Rounding.TRUNCATE),
        ("deep", Rounding.STOCHASTIC),
        ("deep", Rounding.CARRY),
        ("shallow", Rounding.CARRY),
    ],
)
def test_the_integers_are_the_same(runtime: Any, name: str, rounding: Rounding) -> None:
    made = tiny(name)
    plan = mixed_plan(name, 6, 12, rounding, channels=rounding is Rounding.NEAREST, seed=3)
    compare(runtime, lower(made.model, plan), made.images.numpy()[:6])


def test_one_image_and_powers_of_two_and_random_pixels(runtime: Any) -> None:
    program = lower(tiny("shallow").model, mixed_plan("shallow", 3, 6, log2_weights=True))
    noise = np.random.default_rng(0).integers(0, 256, (9, *program.image_shape), dtype=np.uint8)
    compare(runtime, program, noise)
    compare(runtime, program, noise[:1])
    compare(runtime, program, np.zeros_like(noise[:1]))


def evaluate(runtime: Any, graph: Graph, result: str, x: np.ndarray) -> np.ndarray:
    from onnx import TensorProto, helper

    made = helper.make_graph(
        graph.nodes,
        "one",
        [helper.make_tensor_value_info("x", TensorProto.DOUBLE, list(x.shape))],
        [helper.make_tensor_value_info(result, TensorProto.DOUBLE, None)],
        graph.initializers,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    session = runtime.InferenceSession(model.SerializeToString())
    return np.asarray(session.run(None, {"x": x.astype(np.float64)})[0])


def extremes(rng: np.random.Generator, fmt: FixedFormat, shape: tuple[int, ...]) -> np.ndarray:
    """Random codes, with rows of zeros, of ones and of both ends of the range."""
    codes = rng.integers(fmt.min_code, fmt.max_code + 1, shape)
    for row, value in enumerate((0, 1, fmt.min_code, fmt.max_code)):
        codes[row] = value
    return codes.astype(np.int32)


@pytest.mark.parametrize("case", range(12))
def test_squash_and_softmax_on_random_formats(runtime: Any, case: int) -> None:
    rng = np.random.default_rng(case)
    rounding = list(Rounding)[case % 3]
    fmt = FixedFormat(int(rng.integers(2, 17)), int(rng.integers(-3, 18)), True)
    dim, out = int(rng.integers(1, 20)), FixedFormat(int(rng.integers(2, 17)), int(rng.integers(0, 16)), True)
    codes = extremes(rng, fmt, (50, dim))
    noise = rng.integers(0, 1 << 32, (50, dim)) if rounding is Rounding.STOCHASTIC else None
    graph = Graph()
    result = functions.squash(graph, "x", fmt, out, rounding, noise)
    np.testing.assert_array_equal(
        evaluate(runtime, graph, result, codes), squash(codes, fmt, out, rounding, noise), err_msg=f"{fmt} {out}"
    )
    outputs, out = int(rng.integers(1, 60)), FixedFormat(int(rng.integers(1, 17)), int(rng.integers(0, 17)), False)
    logits = extremes(rng, fmt, (40, outputs))
    noise = rng.integers(0, 1 << 32, (40, outputs)) if rounding is Rounding.STOCHASTIC else None
    graph = Graph()
    result = functions.softmax(graph, "x", outputs, fmt, out, rounding, noise)
    np.testing.assert_array_equal(
        evaluate(runtime, graph, result, logits), softmax(logits, fmt, out, -1, rounding, noise), err_msg=f"{fmt} {out}"
    )


@pytest.mark.parametrize("rounding", [rounding for rounding in Rounding if rounding.alone is rounding])
def test_rounding_shifts(runtime: Any, rounding: Rounding) -> None:
    rng = np.random.default_rng(1)
    acc = rng.integers(-(1 << 40), 1 << 40, (30, 5))
    acc[0] = (-1, 0, 1, 2, 3)
    noise = rng.integers(0, 1 << 32, (30, 5)) if rounding is Rounding.STOCHASTIC else None
    for shift in (0, 1, 7, 33, -4, np.array([0, 3, -2, 11, 35])):
        graph = Graph()
        result = graph.rounding_shift("x", shift, rounding, noise)
        if result == "x":
            result = graph.op("Identity", "x")
        expected = rounding_shift(acc, shift, rounding, noise)
        np.testing.assert_array_equal(evaluate(runtime, graph, result, acc), expected, err_msg=str(shift))
