"""PyTorch modules of users as caplet models: found, compared, refused."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import caplet
from caplet.api import Program, parse_targets
from caplet.errors import ModelError
from caplet.models.base import CapsNet
from caplet.nn.functional import lengths
from torch_capsules import (
    Agreement,
    FlatNet,
    ListedNet,
    OpenNet,
    TypedNet,
    open_net,
    other_squash,
)

IMAGE = (1, 9, 8)
LAYERS = (["stem"], "primary.conv", "digits.W")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def fresh(model: CapsNet, count: int = 5) -> Tensor:
    return torch.rand(count, *model.config.image)


def equal(model: CapsNet, net: nn.Module, atol: float = 2e-6) -> None:
    """Both give the same class capsules for images that adopting has not seen."""
    images = fresh(model)
    with torch.no_grad():
        torch.testing.assert_close(model(images), net.eval()(images), atol=atol, rtol=0)


def found(model: CapsNet) -> str:
    return "; ".join(model.notes["read"])


Net = Callable[[], nn.Module]
STRUCTURES: dict[str, tuple[Net, tuple[list[str], str, str], Callable[[nn.Module, Tensor], Tensor], str]] = {
    "flat": (
        FlatNet,
        (["conv1", "relu"], "primarycaps.conv2d", "weight"),
        lambda net, x: net(x)[0],
        "capsules=flat, order=types, layout=oidk, iterations=3",
    ),
    "typed": (
        TypedNet,
        (["conv1"], "primaryCaps.conv", "digitCaps.weights"),
        lambda net, x: net(x)[1],
        "capsules=types, order=types, layout=ikod, iterations=3",
    ),
    "listed": (
        ListedNet,
        (["conv1", "relu"], "primary_capsules.capsules", "route_weights"),
        lambda net, x: net(x)[0],
        "capsules=components, order=types, layout=oikd, iterations=3",
    ),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_the_structures_of_public_codes(name: str, tmp_path: Path) -> None:
    make, layers, outputs, words = STRUCTURES[name]
    net = make()
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    model = caplet.adopt(net, (1, 8, 8), *layers)
    assert words in found(model)
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())
    path = tmp_path / "model.safetensors"
    caplet.save_model(model, path)
    loaded = caplet.load(path)
    assert isinstance(loaded, CapsNet)
    images = fresh(model)
    with torch.no_grad():
        theirs, ours = outputs(net, images), lengths(loaded(images))
    torch.testing.assert_close(ours.softmax(1) if name == "listed" else ours, theirs, atol=2e-6, rtol=0)


ORDERS = [("types", "types"), ("types", "positions"), ("components", "types"), ("components", "positions")]


@pytest.mark.parametrize(("capsules", "order"), [*ORDERS, ("flat", "types")])
def test_every_order_of_primary_capsules_is_found(capsules: str, order: str) -> None:
    net = open_net(capsules, order)
    model = caplet.adopt(net, IMAGE, *LAYERS)
    assert f"dim=4, capsules={capsules}, order={order}" in found(model)
    equal(model, net)


@pytest.mark.parametrize("layout", ["".join(letters) for letters in itertools.permutations("oidk")])
@pytest.mark.parametrize("dims", [(4, 6), (4, 4), (2, 5)])
def test_every_layout_of_the_weights_is_found(layout: str, dims: tuple[int, int]) -> None:
    net = open_net(layout=layout, dims=dims, extra=(0,) if dims == (4, 6) else (2, -1))
    model = caplet.adopt(net, IMAGE, *LAYERS)
    assert f"layout={layout}, iterations=3" in found(model)
    equal(model, net)


def test_a_list_of_weights_by_class() -> None:
    net = open_net()
    net.digits.matrices = nn.ParameterList([weight.detach() for weight in net.digits.W])
    model = caplet.adopt(net, IMAGE, ["stem"], "primary.conv", "digits.matrices")
    equal(model, net)


@pytest.mark.parametrize("iterations", [1, 2, 5, 9])
def test_iterations(iterations: int) -> None:
    net = open_net(routing=Agreement(iterations))
    model = caplet.adopt(net, IMAGE, *LAYERS, iterations=iterations)
    equal(model, net)
    assert model.config.model_dump()["iterations"] == iterations
    message = r"differ by \S+, 0.0001 is allowed; first in the routing of digits.W: (state iterations=[125],|it is no)"
    with pytest.raises(ModelError, match=message):
        caplet.adopt(net, IMAGE, *LAYERS, iterations=3)


def test_iterations_that_make_no_difference_are_asked_for() -> None:
    net = open_net()
    with torch.no_grad():
        net.digits.W *= 1e-4
    with pytest.raises(ModelError, match=r"1, 2, 3 and 3 more iterations give equal outputs .*; state iterations=3"):
        caplet.adopt(net, IMAGE, *LAYERS)
    equal(caplet.adopt(net, IMAGE, *LAYERS, iterations=3), net)


def test_a_bias_of_the_class_capsules() -> None:
    net = open_net(bias=True)
    model = caplet.adopt(net, IMAGE, *LAYERS, bias="digits.bias")
    equal(model, net)
    with pytest.raises(ModelError, match=r"first in the routing of digits.W: .* adds a bias"):
        caplet.adopt(net, IMAGE, *LAYERS)


def norm(channels: int) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    with torch.no_grad():
        for tensor in (layer.weight, layer.running_var):
            tensor.uniform_(0.5, 2.0)
        for tensor in (layer.bias, layer.running_mean):
            tensor.uniform_(-0.5, 0.5)
    return layer


STEMS: dict[str, Callable[[], tuple[nn.Module, nn.Module]]] = {
    "norm before the activation": lambda: (
        nn.Sequential(nn.Conv2d(1, 8, 3, bias=False), norm(8), nn.ReLU(inplace=True), nn.Dropout(0.5)),
        nn.Conv2d(8, 12, 3, 2),
    ),
    "norm after the activation": lambda: (
        nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), norm(8)),
        nn.Conv2d(8, 12, 3, 2, bias=False),
    ),
    "norms, then zeros around the map": lambda: (
        nn.Sequential(
            nn.Conv2d(1, 8, 3), norm(8), nn.ReLU(), norm(8), nn.Conv2d(8, 6, 3, padding=1), nn.LeakyReLU(0.2)
        ),
        nn.Conv2d(6, 12, 3, 2),
    ),
    "same padding, even and odd": lambda: (
        nn.Sequential(nn.Conv2d(1, 8, 4, padding="same"), nn.ReLU(), nn.Conv2d(8, 6, 3, padding="valid"), nn.PReLU()),
        nn.Conv2d(6, 12, 3, 2),
    ),
    "a small kernel and nested parts": lambda: (
        nn.Sequential(nn.Sequential(nn.Conv2d(1, 8, 1, padding="same"), nn.ReLU()), nn.Conv2d(8, 5, 3), nn.ReLU()),
        nn.Conv2d(5, 12, 3, 2),
    ),
}


@pytest.mark.parametrize("name", STEMS)
def test_stems(name: str) -> None:
    stem, conv = STEMS[name]()
    net = open_net(stem=stem, conv=conv).train()
    model = caplet.adopt(net, IMAGE, *LAYERS)
    assert all(part.training for part in net.modules())
    equal(model, net, 5e-6)


class Functional(nn.Module):
    """A stem whose activation is a function."""

    def __init__(self, function: Callable[[Tensor], Tensor], normed: bool = False) -> None:
        super().__init__()
        self.conv, self.norm, self.function = nn.Conv2d(1, 8, 3), norm(8) if normed else None, function

    def forward(self, x: Tensor) -> Tensor:
        x = self.function(self.conv(x))
        return x if self.norm is None else self.norm(x)


@pytest.mark.parametrize("slope", [0.0, 0.1])
def test_activations_that_are_functions_are_found(slope: float) -> None:
    net = open_net(stem=Functional(lambda x: F.leaky_relu(x, slope), normed=True))
    for stem in (["stem.conv", "stem.norm"], ["stem.conv", "relu", "stem.norm"]):
        model = caplet.adopt(net, IMAGE, stem, "primary.conv", "digits.W")
        equal(model, net, 5e-6)
        assert [conv["slope"] for conv in model.config.model_dump()["stem"]] == [slope]


def test_another_activation() -> None:
    net = open_net(stem=Functional(torch.tanh))
    with pytest.raises(ModelError, match=r"first difference in primary.conv: it reads other maps than what stem.conv"):
        caplet.adopt(net, IMAGE, ["stem.conv"], "primary.conv", "digits.W")


def test_a_norm_of_the_primary_capsules() -> None:
    net = open_net(conv=nn.Sequential(nn.Conv2d(8, 12, 3, 2), norm(12)))
    layers = (["stem"], "primary.conv.0", "digits.W")
    equal(caplet.adopt(net, IMAGE, *layers, norm="primary.conv.1"), net)
    with pytest.raises(ModelError, match=r"first in the primary capsules primary.conv.0"):
        caplet.adopt(net, IMAGE, *layers)


ENDS: dict[str, Callable[[Tensor], object]] = {
    "lengths": lambda v: v.norm(dim=-1),
    "squared lengths": lambda v: (v**2).sum(-1),
    "softmax": lambda v: v.norm(dim=-1).softmax(-1),
    "log of a softmax": lambda v: F.log_softmax((v**2).sum(-1), -1),
    "capsules as a column": lambda v: v[..., None],
    "nested": lambda v: {"classes": [v.norm(dim=-1), (v.argmax(),)], "capsules": v.transpose(0, 1)},
    "a mask beside": lambda v: (v, torch.zeros(len(v), 1, 9, 8), F.one_hot(v.norm(dim=-1).argmax(1), 5).float()),
    "an image alone": lambda v: torch.zeros(len(v), 1, 9, 8),
}


@pytest.mark.parametrize("name", ENDS)
def test_outputs(name: str) -> None:
    net = open_net(ends=ENDS[name])
    model = caplet.adopt(net, IMAGE, *LAYERS)
    net.ends = ENDS["capsules as a column"]
    images = fresh(model)
    with torch.no_grad():
        torch.testing.assert_close(model(images), net(images).squeeze(-1), atol=2e-6, rtol=0)


def wrapped(net: OpenNet) -> nn.Module:
    return nn.DataParallel(net)


def compiled(net: OpenNet) -> nn.Module:
    return torch.compile(net, backend="eager")  # type: ignore[return-value]


def masked(net: OpenNet) -> nn.Module:
    prune.random_unstructured(net.stem[0], "weight", 0.4)  # type: ignore[no-untyped-call, index]
    prune.l1_unstructured(net.digits, "W", 0.3)  # type: ignore[no-untyped-call]
    return net


def weight_norm(net: OpenNet) -> nn.Module:
    parametrizations.weight_norm(net.primary.conv)
    parametrizations.weight_norm(net.digits, "W")
    return net


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def old_weight_norm(net: OpenNet) -> nn.Module:
    with pytest.warns(FutureWarning):
        torch.nn.utils.weight_norm(net.primary.conv)
    return net


WRAPPERS = [wrapped, compiled, masked, weight_norm, old_weight_norm]
WRAPPERS += [lambda net: net.double(), lambda net: net.half(), lambda net: net.bfloat16()]


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_wrapped_modules_and_other_numbers(wrap: Callable[[OpenNet], nn.Module]) -> None:
    net = open_net(stem=nn.Sequential(nn.Conv2d(1, 8, 3), norm(8), nn.ReLU()))
    module = wrap(net)
    dtypes = {tensor.dtype for tensor in module.parameters()}
    model = caplet.adopt(module, IMAGE, *LAYERS)
    assert {tensor.dtype for tensor in module.parameters()} == dtypes
    for tensors in (module.parameters(), module.buffers()):
        for tensor in tensors:
            if tensor.is_floating_point():
                tensor.data = tensor.data.float()
    equal(model, net)


def test_images_that_are_prepared_for_the_module() -> None:
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
    net = open_net(stem=stem).eval()
    assume = {"normalize": (0.5, 0.4, 0.3, 0.2, 0.25, 0.3), "channels": "bgr"}
    model = caplet.adopt(net, (3, 9, 8), *LAYERS, assume=assume)
    images = fresh(model)
    prepared = (images.flip(1) - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.2, 0.25, 0.3]).view(
        3, 1, 1
    )
    with torch.no_grad():
        torch.testing.assert_close(model(images), net(prepared), atol=1e-5, rtol=0)
    assert model.notes["stated"]["channels"] == "bgr"


class Attention(nn.Module):
    """Not routing by agreement: one softmax over scaled products with the mean vote."""

    def forward(self, votes: Tensor) -> Tensor:
        scores = (votes * votes.mean(1, keepdim=True)).sum(-1) / 2
        return torch.tanh((scores.softmax(2)[..., None] * votes).sum(1))


class Trained(Agreement):
    """Routing from trained logits."""

    def __init__(self) -> None:
        super().__init__(3)
        self.b = nn.Parameter(torch.randn(18, 5))

    def forward(self, votes: Tensor, bias: Tensor | float = 0.0) -> Tensor:
        logits = self.b.expand(len(votes), 18, 5)
        for _ in range(self.iterations):
            capsules = self.squash((logits.softmax(2).unsqueeze(-1) * votes).sum(1))
            logits = logits + (votes * capsules.unsqueeze(1)).sum(-1)
        return capsules


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(30, 5)

    def forward(self, capsules: Tensor) -> Tensor:
        out: Tensor = self.linear(capsules.flatten(1))
        return out


class AlwaysDropped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.3)


def pooled() -> OpenNet:
    parts = (nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, 1), nn.Conv2d(8, 8, 2), nn.ReLU())
    return open_net(stem=nn.Sequential(*parts))


def stemmed(*parts: nn.Module, **settings: Any) -> Net:
    return lambda: open_net(stem=nn.Sequential(*parts), **settings)


def nested() -> OpenNet:
    return open_net(stem=STEMS["a small kernel and nested parts"]()[0], conv=nn.Conv2d(5, 12, 3, 2))


CONV, DIGITS = "primary.conv", "digits.W"
REFUSED: dict[str, tuple[Net, tuple[Any, ...], str]] = {
    "softmax over inputs": (
        lambda: open_net(routing=Agreement(3, over=1)),
        LAYERS,
        r"outputs differ by \S+, 0.0001 is allowed; first in the routing of digits.W: its softmax runs over input",
    ),
    "softmax over inputs, lengths alone": (
        lambda: ListedNet(size=9, over=1),
        (["conv1"], "primary_capsules.capsules", "route_weights"),
        "first in the routing of route_weights: its softmax runs over input capsules",
    ),
    "averaged logits": (
        lambda: open_net(routing=Agreement(3, averaged=True)),
        LAYERS,
        r"change from run to run, or with the other images, by \S+; no caplet model .*averaged over a batch",
    ),
    "attention": (lambda: open_net(routing=Attention()), LAYERS, "routing of digits.W: it is no routing by agreement"),
    "trained logits": (
        lambda: open_net(routing=Trained()),
        LAYERS,
        "first in the routing of digits.W: .* begins with trained logits",
    ),
    "another squash": (
        lambda: open_net(squash=other_squash),
        LAYERS,
        r"primary capsules primary.conv: its squash is another, \S+ long becomes \S+, not \S+$",
    ),
    "another squash of the classes": (
        lambda: open_net(routing=Agreement(3, other_squash)),
        LAYERS,
        "first in the routing of digits.W: .* or its squash is another",
    ),
    "classes of another layer": (lambda: open_net(ends=Head()), LAYERS, "outputs differ by"),
    "dropped within": (
        stemmed(nn.Conv2d(1, 8, 3), nn.ReLU(), AlwaysDropped()),
        (["stem.0", "stem.1"], CONV, DIGITS),
        "first difference in primary.conv",
    ),
    "dropped at the end": (lambda: open_net(ends=AlwaysDropped()), LAYERS, "change from run to run, or .*, by"),
    "a pool": (pooled, LAYERS, r"stem.2 is MaxPool2d\(.*; the rule is Conv2d, then BatchNorm2d"),
    "a pool left out": (
        pooled,
        (["stem.0", "stem.1", "stem.3", "stem.4"], CONV, DIGITS),
        r"stem.3 reads \(8, 8, 7\), but what is named before it gives \(8, 9, 8\); name all layers",
    ),
    "the wrong order": (
        nested,
        (["stem.1", "stem.2", "stem.0.0", "stem.0.1"], CONV, DIGITS),
        r"stem.1 reads \(8, 9, 8\), but what is named before it gives \(1, 9, 8\); name all layers, in the order",
    ),
    "a norm left out": (
        stemmed(nn.Conv2d(1, 8, 3), norm(8), nn.ReLU()),
        (["stem.0", "stem.2"], CONV, DIGITS),
        r"first difference in primary.conv: it reads other maps than what stem.0 and .* \(\d.*\); name what is between",
    ),
    "a norm first": (
        stemmed(norm(1), nn.Conv2d(1, 8, 3), nn.ReLU()),
        LAYERS,
        r"stem.0 is BatchNorm2d\(.*; the rule is Conv2d, then BatchNorm2d",
    ),
    "no activation": (lambda: open_net(stem=nn.Conv2d(1, 8, 3)), LAYERS, "no activation between stem and primary.conv"),
    "a ReLU6": (stemmed(nn.Conv2d(1, 8, 3), nn.ReLU6()), LAYERS, r"stem.1 is ReLU6\(\); the rule is"),
    "groups": (lambda: open_net(conv=nn.Conv2d(8, 12, 3, 2, groups=2)), LAYERS, r"primary.conv is Conv2d\(.*no groups"),
    "reflection": (
        stemmed(nn.Conv2d(1, 8, 3, padding=1, padding_mode="reflect"), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()),
        LAYERS,
        r"stem.0 is Conv2d\(.*reflect.*; the rule is .* no groups, dilation or reflection",
    ),
    "batch statistics": (
        stemmed(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU()),
        LAYERS,
        r"stem.1 is BatchNorm2d\(.*; the rule is .* with a mean and a variance",
    ),
    "a misspelt layer": (
        open_net,
        (["stm"], CONV, DIGITS),
        "there is no layer or parameter 'stm'; did you mean 'stem'",
    ),
    "a misspelt weight": (
        open_net,
        (["stem"], CONV, "digits.V"),
        "there is no layer or parameter 'digits.V'; did you mean 'digits.W'",
    ),
    "a part for a weight": (open_net, (["stem"], CONV, "digits"), r"digits is OpenVotes\(.*; the rule is a Parameter"),
    "a part for a convolution": (
        open_net,
        (["stem"], "primary", DIGITS),
        r"primary is OpenPrimary\(.*; the rule is a Conv2d with one kernel size.*: primary.conv$",
    ),
    "another weight": (
        open_net,
        (["stem"], CONV, "stem.0.weight"),
        r"stem.0.weight has shape \(8, 1, 3, 3\), primary.conv \(12, 3, 2\).*: check these paths",
    ),
    "no module": (lambda: {"state": 1}, LAYERS, "dict: it cannot be adopted; give the torch.nn.Module itself"),  # type: ignore[dict-item, return-value]
    "classes alone": (
        lambda: FunctionalRouting(),
        (["stem"], CONV, "W"),
        "it gives nothing that can be compared; give a module that returns class capsules or their lengths",
    ),
}


class FunctionalRouting(nn.Module):
    """All in one forward, which returns classes only."""

    def __init__(self) -> None:
        super().__init__()
        net = open_net()
        self.stem, self.primary, self.routing, self.W = net.stem, net.primary, net.digits.routing, net.digits.W

    def forward(self, x: Tensor) -> Tensor:
        votes = torch.einsum("bik,oidk->biod", self.primary(self.stem(x)), self.W)
        return (votes.mean(1) if self.training else self.routing.forward(votes)).norm(dim=-1).argmax(1)


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    make, layers, message = REFUSED[name]
    net = make()
    image = (1, 9, 9) if isinstance(net, ListedNet) else IMAGE
    with pytest.raises(ModelError, match=message) as caught:
        caplet.adopt(net, image, *layers)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"{type(net).__name__}: ")


class Clipped(OpenNet):
    """A ReLU6 as a function: values beyond 6 are rare in noise."""

    def forward(self, x: Tensor) -> object:
        return self.digits(self.primary(F.hardtanh(self.stem[0](x), 0.0, 6.0)))


def test_a_clip_that_noise_hardly_reaches() -> None:
    net = open_net(stem=nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU()))
    with torch.no_grad():
        net.stem[0].weight.fill_(0.0)
        net.stem[0].weight[:, :, :2] = 1.05  # six black or white pixels reach 6.3, noise about 3
    clipped = Clipped(net.stem, net.primary, net.digits)
    caplet.adopt(net, IMAGE, *LAYERS)
    with pytest.raises(ModelError, match=r"between stem\.0 and primary|first difference in"):
        caplet.adopt(clipped, IMAGE, ["stem.0"], CONV, DIGITS)


@pytest.mark.parametrize(
    ("layers", "options", "message"),
    [
        (("stem.0", CONV, DIGITS), {}, "stem is a list of paths, primary and digits are paths"),
        ((["stem"], 3, DIGITS), {}, "stem is a list of paths, primary and digits are paths"),
        (([nn.ReLU()], CONV, DIGITS), {}, "stem is a list of paths, primary and digits are paths"),
        (LAYERS, {"iterations": "3"}, "iterations='3', tolerance=.*; the rule is a whole number or None, a number"),
        (LAYERS, {"tolerance": "tight"}, "tolerance='tight'; the rule is"),
    ],
)
def test_arguments_of_wrong_types(layers: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        caplet.adopt(open_net(), IMAGE, *layers, **options)
    assert "\n" not in str(caught.value)


def test_an_image_that_does_not_fit_and_a_forward_that_takes_more() -> None:
    class Labelled(OpenNet):
        def forward(self, x: Tensor, labels: Tensor) -> object:  # type: ignore[override]
            return super().forward(x), labels

    net = open_net()
    with pytest.raises(ModelError, match=r"its forward fails on one argument, images \(6, 3, 9, 8\): .*; give"):
        caplet.adopt(net, (3, 9, 8), *LAYERS)
    labelled = Labelled(net.stem, net.primary, net.digits)
    with pytest.raises(ModelError, match=r"Labelled: its forward fails .* the part that takes images alone"):
        caplet.adopt(labelled, IMAGE, *LAYERS)
    with pytest.raises(ModelError, match=r"iterations=0; the rule is"):
        caplet.adopt(net, IMAGE, *LAYERS, iterations=0)
    with pytest.raises(ModelError, match="setting 'image"):
        caplet.adopt(net, (1, 0, 8), *LAYERS)


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.slow
def test_from_a_module_to_integers(name: str, tmp_path: Path) -> None:
    """A module that its user trained: adopted, quantized on real images, every integer verified in C."""
    make, layers, outputs, _ = STRUCTURES[name]
    net, data = make(), caplet.load_data("digits")
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    images, labels = data.train.images[:600].float() / 255, F.one_hot(data.train.labels[:600], 10)
    for _ in range(25):
        length = outputs(net, images)
        wanted = labels if name != "listed" else labels.double()
        loss = (wanted * F.relu(0.9 - length) ** 2 + 0.5 * (1 - wanted) * F.relu(length - 0.1) ** 2).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model = caplet.adopt(net, (1, 8, 8), *layers)
    with torch.no_grad():
        theirs = outputs(net, data.test.images.float() / 255).argmax(1)
    assert torch.equal(torch.from_numpy(caplet.evaluate(model, data.test).predictions), theirs)
    settings = caplet.QuantizeSettings(tolerance=5.0, effort="quick", accept="measured")
    result = caplet.quantize(model, data, tmp_path / "run", settings)
    program = caplet.load(result.models[0].path)
    assert isinstance(program, Program)
    targets = parse_targets("interpreter,native")
    verified = caplet.verify_engines(program, data.test.images[:40].numpy(), targets)
    assert [(each.images, each.differing) for each in verified] == [(40, 0), (40, 0)]
