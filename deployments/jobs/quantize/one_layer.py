"""A GPT-NeoX model in which there is room for one of its layers at a time: its embeddings, its head, and the layer that has been loaded."""

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
"""What the names of all layers' tensors begin with."""


def layer_prefix(index: int) -> str:
    """What those of one layer begin with."""
    return f"{LAYERS}{index}."


class OneLayerModel:
    """Hidden states are float32 [1, tokens, hidden], and kept on the CPU between layers. layers: how many the checkpoint has."""

    def __init__(self, folder: Path, tensors: Tensors) -> None:
        config = GPTNeoXConfig.from_pretrained(folder)
        self.layers: int = config.num_hidden_layers
        config.num_hidden_layers = 1
        config._attn_implementation = "sdpa"
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = GPTNeoXForCausalLM(config).eval().to(self._device, torch.float32)
        self._tensors = tensors
        body = self._model.gpt_neox
        head = next(name for name in _HEADS if name in tensors)
        _load(body.embed_in, {"weight": tensors.get(_EMBEDDING)}, _EMBEDDING)
        _load(self._model.get_output_embeddings(), {"weight": tensors.get(head)}, head)
        _load(body.final_layer_norm, tensors.below("gpt_neox.final_layer_norm."), "gpt_neox.final_layer_norm.")

    def load(self, index: int) -> None:
        """The layer of that number as the checkpoint has it. Raises JobError where some of it is missing."""
        _load(self._layer, self._tensors.below(layer_prefix(index)), layer_prefix(index))

    def matrices(self) -> Mapping[str, torch.nn.Linear]:
        """Those of the loaded layer, by name."""
        return {name: part for name, part in self._layer.named_modules() if isinstance(part, torch.nn.Linear)}

    def embedded(self, ids: torch.Tensor) -> torch.Tensor:
        """Hidden states before the first layer. ids: [tokens]."""
        with torch.inference_mode():
            states: torch.Tensor = self._model.gpt_neox.embed_in(ids[None].to(self._device))
        return states.cpu()

    def through(self, states: torch.Tensor) -> torch.Tensor:
        """Hidden states after the loaded layer."""
        states = states.to(self._device)
        positions = torch.arange(states.shape[1], device=self._device)[None]
        with torch.inference_mode():
            turned = self._model.gpt_neox.rotary_emb(states, position_ids=positions)
            after: torch.Tensor = self._layer(states, attention_mask=None, use_cache=False, position_embeddings=turned)
        return after.cpu()

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """[tokens, vocabulary], of hidden states after the last layer."""
        with torch.inference_mode():
            normed = self._model.gpt_neox.final_layer_norm(states.to(self._device))
            logits: torch.Tensor = self._model.get_output_embeddings()(normed)
        return logits[0].cpu()

    def moments(self, sequences: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Of what comes into each matrix of the loaded layer, over all sequences: the sum of x x^T, float64."""
        matrices = self.matrices()
        sums = {
            name: torch.zeros(part.in_features, part.in_features, dtype=torch.float64, device=self._device)
            for name, part in matrices.items()
        }
        handles = [part.register_forward_pre_hook(_adding(sums[name])) for name, part in matrices.items()]
        for states in sequences:
            self.through(states)
        for handle in handles:
            handle.remove()
        return {name: total.cpu() for name, total in sums.items()}

    @contextmanager
    def rounding_inputs(self, scheme: Scheme) -> Iterator[None]:
        """Has the matrices round what comes in as engines will."""
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
    except RuntimeError as error:  # of another shape
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
