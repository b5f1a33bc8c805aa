"""Walks through a checkpoint layer by layer: each is loaded once, rounded against what comes into it, and measured as it was and as it is.

What comes into a layer are the calibration sequences, through layers that are rounded already; and the held-out windows twice, through
layers as they were, and through rounded ones that round their inputs as engines will.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from deployments.jobs.quantize.checkpoint import Growing, Stored, Tensors
from deployments.jobs.quantize.gptq import quantized
from deployments.jobs.quantize.one_layer import LAYERS, OneLayerModel, layer_prefix
from deployments.jobs.quantize.schemes import Scheme
from deployments.jobs.quantize.texts import Cost, Texts


@dataclass(frozen=True, slots=True)
class Measured:
    """Of the held-out text."""

    before: Cost
    after: Cost


def walk(
    model: OneLayerModel, tensors: Tensors, texts: Texts, scheme: Scheme, growing: Growing, advance: Callable[[int], None]
) -> Measured:
    """Writes a file for each layer, and one for the rest; those that are there from before are taken as they are.

    advance: told of every matrix that is done, with the tokens that this took. Raises JobError, OSError.
    """
    calibration = [model.embedded(ids) for ids in texts.calibration]
    before = [model.embedded(texts.window(window)) for window in texts.windows]
    after = before
    for index in range(model.layers):
        model.load(index)
        before = [model.through(states) for states in before]
        stored = growing.found(index)
        if stored is None:
            stored = _rounded(model, tensors, index, calibration, scheme, advance)
            growing.write(index, stored)
        else:
            for _ in model.matrices():
                advance(0)
        _replace(model, index, stored, scheme)
        calibration = [model.through(states) for states in calibration]
        with model.rounding_inputs(scheme):
            after = [model.through(states) for states in after]
    growing.write(model.layers, {name: tensors.get(name) for name in tensors if not name.startswith(LAYERS)})
    return Measured(_cost(model, texts, before), _cost(model, texts, after))


def _rounded(
    model: OneLayerModel, tensors: Tensors, index: int, calibration: list[torch.Tensor], scheme: Scheme, advance: Callable[[int], None]
) -> Stored:
    """The tensors of the loaded layer, its matrices rounded."""
    prefix = layer_prefix(index)
    kept = {f"{prefix}{name}": tensor for name, tensor in tensors.below(prefix).items()}
    moments = model.moments(calibration)
    for name, part in model.matrices().items():
        original = kept.pop(f"{prefix}{name}.weight")
        numbers, scales = quantized(part.weight.detach().cpu(), moments.pop(name), scheme)
        kept |= {f"{prefix}{name}.{each}": tensor for each, tensor in scheme.stored(numbers, scales, original.dtype).items()}
        advance(sum(states.shape[1] for states in calibration))
    return kept


def _replace(model: OneLayerModel, index: int, stored: Stored, scheme: Scheme) -> None:
    """The loaded layer's matrices are then what is stored of them."""
    for name, part in model.matrices().items():
        prefix = f"{layer_prefix(index)}{name}."
        own = {key.removeprefix(prefix): tensor for key, tensor in stored.items() if key.startswith(prefix)}
        part.weight.data.copy_(scheme.opened(own))


def _cost(model: OneLayerModel, texts: Texts, states: Sequence[torch.Tensor]) -> Cost:
    cost = Cost()
    for window, state in zip(texts.windows, states, strict=True):
        cost.add(model.logits(state), texts.window(window), window.end - window.scored_from)
    return cost
