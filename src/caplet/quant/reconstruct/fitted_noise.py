"""The noise that weights make alone once they are fitted: what a search needs to know of plans that will be fitted.

A fit takes most of the noise out of weights; how much differs from layer to layer and from width to width. Here the
weights of one layer are fitted to a width on the layer's float inputs, everything else stays in float, and the effect
on the class capsules is measured as searches measure it.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from caplet.data.imageset import to_float
from caplet.files import digest
from caplet.models.base import CapsNet, State
from caplet.models.staged import StagedModel
from caplet.nn.functional import lengths
from caplet.nn.layer import Layer
from caplet.nn.points import Handler, PointSpec
from caplet.quant.choices import Part
from caplet.quant.plan.formats import FormatSource
from caplet.quant.reconstruct.adaptive_rounding import fit, weight_grid
from caplet.quant.reconstruct.blocks import KNOWN_BYTES, Chain
from caplet.quant.reconstruct.equalization import folded
from caplet.quant.reconstruct.linear_maps import View, make_view, parameter_of
from caplet.quant.reconstruct.settings import ReconstructSettings

_BATCH = 64


class _Instead(Handler):
    """Puts other constants in the place of some."""

    def __init__(self, constants: dict[str, Tensor]) -> None:
        self._constants = constants

    def tap(self, key: str, spec: PointSpec, value: Tensor, iteration: int) -> Tensor:
        return self._constants.get(key, value)


class FittedNoise:
    """Measures the noise of fitted weights, each width once.

    Args:
        model: float.
        images: uint8 (N, C, H, W), 5 or more; a fifth of them measures, the others fit.
        source: of the weights' formats.
        settings: of the fits.
        remember: ``remember(asked, measure)`` is the number for what is asked, measured where it is not known.
    """

    def __init__(
        self,
        model: CapsNet,
        images: Tensor,
        source: FormatSource,
        settings: ReconstructSettings,
        remember: Callable[[Mapping[str, Any], Callable[[], float]], float],
    ) -> None:
        self._model = folded(model)
        self._staged = StagedModel(self._model)
        self._source, self._settings, self._remember = source, settings, remember
        images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]  # classes take turns
        fifth = -(-len(images) // 5)
        self._measure_on, self._fit_on = images[:fifth], images[fifth:]
        self._layers = {f"{layer.name}.weight": layer for layer in self._model.layers() if "weight" in layer.specs}
        self._asked = {"images": digest(images.contiguous().numpy().data), "settings": settings.model_dump(mode="json")}
        self._references: list[tuple[tuple[State, ...], Tensor]] = []
        self._views: dict[str, View] = {}
        self._inputs: list[list[State]] = []  # of the first stages

    def __getstate__(self) -> dict[str, Any]:
        """It travels without what it computed of the images."""
        return {**vars(self), "_references": [], "_views": {}, "_inputs": []}

    def __call__(self, key: str, width: int) -> float:
        """Mean squared change of the class capsules' lengths when the weights ``key`` are fitted to ``width`` bits."""
        fmt = self._source.format(key, width)

        def measure() -> float:
            layer, settings = self._layers[key], self._settings
            linear, bias_name = self._view_of(key)
            weight = parameter_of(layer, "weight").detach()
            grid = weight_grid(fmt, len(linear.scale), weight.device)
            correct_bias = Part.BIAS in settings.parts and bias_name is not None
            sweeps = 1 if Part.ROUNDING in settings.parts else 0  # one pass tells widths apart
            moves = settings.moves(fmt)
            found = fit(
                linear, weight, grid, sweeps=sweeps, shrink=settings.shrink, correct_bias=correct_bias, moves=moves
            )
            constants = {key: found.weight}
            if correct_bias and bias_name is not None:
                bias = parameter_of(layer, bias_name).detach()
                constants[f"{layer.name}.{bias_name}"] = bias + found.shift.view(bias.shape)
            return self._effect(constants)

        return self._remember({"fitted": key, "format": fmt.to_json(), **self._asked}, measure)

    def _effect(self, constants: dict[str, Tensor]) -> float:
        if not self._references:
            with torch.inference_mode():
                for batch in torch.split(self._measure_on, _BATCH):
                    states, capsules = self._staged.float_states(to_float(batch, self._model.device))
                    self._references.append((states, lengths(capsules)))
        first, changes = self._staged.first_stage(constants), []
        with torch.inference_mode():
            for states, wanted in self._references:
                capsules = self._staged.run_from(first, states[first], _Instead(constants))[0]
                changes.append((lengths(capsules) - wanted).square())
        return float(torch.cat(changes).double().mean())

    def _view_of(self, key: str) -> View:
        """The layer on its float inputs; those of the layers asked for last are kept, as far as memory goes."""
        view = self._views.pop(key, None)
        if view is None:
            layer = self._layers[key]
            inputs = self._inputs_of(layer)
            view = make_view(layer, inputs, inputs, self._settings)
            while self._views and sum(kept[0].nbytes for kept in (view, *self._views.values())) > KNOWN_BYTES:
                del self._views[next(iter(self._views))]
        self._views[key] = view  # the last one used comes last
        return view

    def _inputs_of(self, layer: Layer) -> Tensor:
        chain = Chain(self._model, self._fit_on, known=self._inputs)
        while all(layer is not other for other in chain.stage.layers):
            chain.advance()
        return chain.input_of(layer)
