"""Walks through a model layer by layer: what comes into each is computed once, by layers that are quantised already."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import GPTNeoXForCausalLM

from deployments.jobs.quantize.gptq import quantized
from deployments.jobs.quantize.schemes import Scheme

Stored = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""Whole numbers and scales, by the name of the matrix in the checkpoint, without ".weight"."""


class _FirstLayerReachedError(Exception):
    """What comes into the layers is known."""


def quantize_layers(
    model: GPTNeoXForCausalLM, sequences: torch.Tensor, scheme: Scheme, advance: Callable[[str], None] = lambda _name: None
) -> Stored:
    """Quantises all matrices of all layers; in the model their weights are then what the whole numbers stand for.

    sequences: of token ids, [sequences, tokens], to calibrate with. advance: told of each matrix.
    """
    layers, found = model.gpt_neox.layers, Stored()
    with torch.inference_mode():
        states, given = _into_layers(model, sequences)
        for index, layer in enumerate(layers):
            matrices = {name: part for name, part in layer.named_modules() if isinstance(part, torch.nn.Linear)}
            moments = _moments(layer, matrices, states, given)
            for name, part in matrices.items():
                numbers, scales = quantized(part.weight, moments[name], scheme)
                wide = scales.repeat_interleave(scheme.group or part.weight.shape[1], dim=1)[:, : part.weight.shape[1]]
                part.weight.copy_(numbers * wide)
                full = f"gpt_neox.layers.{index}.{name}"
                found[full] = numbers, scales
                advance(full)
            states = [_hidden(layer(state, **given)) for state in states]
    return found


def _into_layers(model: GPTNeoXForCausalLM, sequences: torch.Tensor) -> tuple[list[torch.Tensor], dict[str, Any]]:
    """Hidden states of each sequence, and what else a layer is given, which is the same for all of them."""
    states: list[torch.Tensor] = []
    given: dict[str, Any] = {}

    def note(_layer: torch.nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        states.append(arguments[0] if arguments else keywords["hidden_states"])
        given.update({name: value for name, value in keywords.items() if name != "hidden_states"})
        raise _FirstLayerReachedError

    handle = model.gpt_neox.layers[0].register_forward_pre_hook(note, with_kwargs=True)
    for sequence in sequences:
        try:
            model.gpt_neox(sequence[None], use_cache=False)
        except _FirstLayerReachedError:
            continue
    handle.remove()
    return states, given


def _moments(
    layer: torch.nn.Module, matrices: dict[str, torch.nn.Linear], states: Sequence[torch.Tensor], given: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """Of the inputs of each matrix, over all states."""
    sums = {name: torch.zeros(part.in_features, part.in_features, dtype=torch.float64) for name, part in matrices.items()}
    handles = [part.register_forward_pre_hook(_adding(sums[name])) for name, part in matrices.items()]
    for state in states:
        layer(state, **given)
    for handle in handles:
        handle.remove()
    return sums


def _adding(total: torch.Tensor) -> Callable[[torch.nn.Module, tuple[Any, ...]], None]:
    def add(_part: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        inputs = arguments[0].reshape(-1, total.shape[0]).float()
        total.add_((inputs.t() @ inputs).double())

    return add


def _hidden(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


def rounding_inputs(model: GPTNeoXForCausalLM, scheme: Scheme) -> Iterator[Any]:
    """Has the matrices of all layers round their inputs as engines will; handles that end it."""
    if scheme.activation_bits:
        largest = 2 ** (scheme.activation_bits - 1) - 1
        for part in model.gpt_neox.layers.modules():
            if isinstance(part, torch.nn.Linear):
                yield part.register_forward_pre_hook(_rounding(largest))


def _rounding(largest: int) -> Callable[[torch.nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    def rounded(_part: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        inputs = arguments[0]
        scale = inputs.abs().amax(dim=-1, keepdim=True).clamp(min=1e-8) / largest
        return ((inputs / scale).round().clamp(-largest - 1, largest) * scale,)

    return rounded
