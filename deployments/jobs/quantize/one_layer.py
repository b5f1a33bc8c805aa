"""A GPT-NeoX model that holds only one of its layers at a time, besides its embeddings and its head."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from deployments.jobs.failures import JobError
from deployments.jobs.quantize.checkpoint import Tensors
from deployments.jobs.quantize.schemes import Scheme

_EMBEDDING, _HEADS = "gpt_neox.embed_in.weight", ("embed_out.weight", "lm_head.weight", "gpt_neox.embed_in.weight")
LAYERS = "gpt_neox.layers."
"""Prefix of the names of all layers' tensors."""


def layer_prefix(index: int) -> str:
    """Returns the prefix of the names of a layer's tensors."""
    return f"{LAYERS}{index}."


class OneLayerModel:
    """Computes hidden states layer by layer. They are float32 [1, tokens, hidden], and on the CPU between layers."""

    def __init__(self, folder: Path, tensors: Tensors) -> None:
        config = GPTNeoXConfig.from_pretrained(folder)
        self.layers: int = config.num_hidden_layers
        """Number of layers of the checkpoint."""
        config.num_hidden_layers = 1
        config._attn_implementation = "sdpa"
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = GPTNeoXForCausalLM(config).eval().to(self._device, torch.float32)
        self._tensors = tensors
        body = self._model.gpt_neox
        head = next(name for name in _HEADS if name in tensors)
        _load(body.embed_in, {"weight": tensors.get(_EMBEDDING)}, _EMBEDDING)
        _load(self._model.get_output_embeddings(), {"weight": tensors.get(head)}, head)
        _load(body.final_layer_norm, tensors.with_prefix("gpt_neox.final_layer_norm."), "gpt_neox.final_layer_norm.")

    def load(self, index: int) -> None:
        """Loads a layer from the checkpoint. Raises JobError if parts of it are missing."""
        _load(self._layer, self._tensors.with_prefix(layer_prefix(index)), layer_prefix(index))

    def matrices(self) -> Mapping[str, torch.nn.Linear]:
        """Returns the matrices of the loaded layer, by name."""
        return {name: part for name, part in self._layer.named_modules() if isinstance(part, torch.nn.Linear)}

    def embedded(self, ids: torch.Tensor) -> torch.Tensor:
        """Returns the hidden states before the first layer. `ids` has the shape [tokens]."""
        with torch.inference_mode():
            states: torch.Tensor = self._model.gpt_neox.embed_in(ids[None].to(self._device))
        return states.cpu()

    def after_layer(self, states: torch.Tensor) -> torch.Tensor:
        """Returns the hidden states after the loaded layer."""
        states = states.to(self._device)
        positions = torch.arange(states.shape[1], device=self._device)[None]
        with torch.inference_mode():
            rotary = self._model.gpt_neox.rotary_emb(states, position_ids=positions)
            after: torch.Tensor = self._layer(states, attention_mask=None, use_cache=False, position_embeddings=rotary)
        return after.cpu()

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Returns the logits [tokens, vocabulary] of hidden states after the last layer."""
        with torch.inference_mode():
            normed = self._model.gpt_neox.final_layer_norm(states.to(self._device))
            logits: torch.Tensor = self._model.get_output_embeddings()(normed)
        return logits[0].cpu()

    def moments(self, sequences: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns, for each matrix of the loaded layer, the sum of x x^T over its inputs x in all sequences, in float64."""
        matrices = self.matrices()
        sums = {
            name: torch.zeros(part.in_features, part.in_features, dtype=torch.float64, device=self._device)
            for name, part in matrices.items()
        }
        handles = [part.register_forward_pre_hook(_adding(sums[name])) for name, part in matrices.items()]
        for states in sequences:
            self.after_layer(states)
        for handle in handles:
            handle.remove()
        return {name: total.cpu() for name, total in sums.items()}

    @contextmanager
    def rounding_inputs(self, scheme: Scheme) -> Iterator[None]:
        """Makes the matrices round their inputs in the block, as engines do with this scheme."""
        largest = 2 ** (scheme.activation_bits - 1) - 1 if scheme.activation_bits else 0
        parts = self.matrices().values() if largest else ()
        handles = [part.register_forward_pre_hook(_rounding(largest)) for part in parts]
        yield
        for handle in handles:
            handle.remove()

    @property
    def _layer(self) -> torch.nn.Module:
        return self._model.gpt_neox.layers[0]


def _load(part: torch.nn.Module, values: Mapping[str, torch.Tensor], name: str) -> None:
    try:
        missing = part.load_state_dict(dict(values), strict=False).missing_keys
    except RuntimeError as error:  # a tensor has another shape
        raise JobError(f"--model: {name}: {error}", 2) from error
    if absent := sorted(set(missing) & {each for each, _ in part.named_parameters()}):
        raise JobError(f"--model: the checkpoint has no {name}{absent[0]}", 2)


def _adding(total: torch.Tensor) -> Callable[[torch.nn.Module, tuple[Any, ...]], None]:
    def add(_part: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        inputs = arguments[0].reshape(-1, total.shape[0]).float()
        total.add_((inputs.t() @ inputs).double())

    return add


def _rounding(largest: int) -> Callable[[torch.nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    def rounded(_part: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        inputs = arguments[0]
        scale = inputs.abs().amax(dim=-1, keepdim=True).clamp(min=1e-8) / largest
        return ((inputs / scale).round().clamp(-largest - 1, largest) * scale,)

    return rounded
