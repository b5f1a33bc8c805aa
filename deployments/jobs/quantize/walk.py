"""Goes through a checkpoint layer by layer: loads each layer once, quantizes it against its inputs, and measures it before and after.

The inputs of a layer are the calibration sequences, through layers that are quantized already; and the held-out windows twice, through the
original layers, and through quantized ones that round their inputs as engines do.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from deployments.jobs.quantize.checkpoint import Stored, Tensors, UnfinishedCheckpoint
from deployments.jobs.quantize.gptq import quantized
from deployments.jobs.quantize.one_layer import LAYERS, OneLayerModel, layer_prefix
from deployments.jobs.quantize.schemes import Scheme
from deployments.jobs.quantize.texts import Cost, Texts


@dataclass(frozen=True, slots=True)
class Measured:
    """The loss on the held-out text."""

    before: Cost
    """With the original weights."""
    after: Cost
    """With the quantized weights."""


def walk(
    model: OneLayerModel, tensors: Tensors, texts: Texts, scheme: Scheme, unfinished: UnfinishedCheckpoint, advance: Callable[[int], None]
) -> Measured:
    """Writes a file for each layer and one for the other tensors. Files from an earlier run are used as they are.

    `advance` is called for every matrix that is done, with the number of tokens used. Raises JobError or OSError.
    """
    calibration = [model.embedded(ids) for ids in texts.calibration]
    before = [model.embedded(texts.window(window)) for window in texts.windows]
    after = before
    for index in range(model.layers):
        model.load(index)
        before = [model.after_layer(states) for states in before]
        stored = unfinished.found(index)
        if stored is None:
            stored = _quantized_layer(model, tensors, index, calibration, scheme, advance)
            unfinished.write(index, stored)
        else:
            for _ in model.matrices():
                advance(0)
        _replace(model, index, stored, scheme)
        calibration = [model.after_layer(states) for states in calibration]
        with model.rounding_inputs(scheme):
            after = [model.after_layer(states) for states in after]
    unfinished.write(model.layers, {name: tensors.get(name) for name in tensors if not name.startswith(LAYERS)})
    return Measured(_cost(model, texts, before), _cost(model, texts, after))


def _quantized_layer(
    model: OneLayerModel, tensors: Tensors, index: int, calibration: list[torch.Tensor], scheme: Scheme, advance: Callable[[int], None]
) -> Stored:
    """Returns the tensors of the loaded layer, with quantized matrices."""
    prefix = layer_prefix(index)
    layer = {f"{prefix}{name}": tensor for name, tensor in tensors.with_prefix(prefix).items()}
    moments = model.moments(calibration)
    for name, part in model.matrices().items():
        original = layer.pop(f"{prefix}{name}.weight")
        integers, scales = quantized(part.weight.detach().cpu(), moments.pop(name), scheme)
        layer |= {f"{prefix}{name}.{each}": tensor for each, tensor in scheme.to_tensors(integers, scales, original.dtype).items()}
        advance(sum(states.shape[1] for states in calibration))
    return layer


def _replace(model: OneLayerModel, index: int, stored: Stored, scheme: Scheme) -> None:
    """Replaces the matrices of the loaded layer by what is stored of them."""
    for name, part in model.matrices().items():
        prefix = f"{layer_prefix(index)}{name}."
        own = {key.removeprefix(prefix): tensor for key, tensor in stored.items() if key.startswith(prefix)}
        part.weight.data.copy_(scheme.from_tensors(own))


def _cost(model: OneLayerModel, texts: Texts, states: Sequence[torch.Tensor]) -> Cost:
    cost = Cost()
    for window, state in zip(texts.windows, states, strict=True):
        cost.add(model.logits(state), texts.window(window), window.end - window.scored_from)
    return cost
