"""What transformers makes of the same checkpoint: the truth that the engines are held to."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from neox_serve.core.types import PositionLogprobs, TokenIds, TokenLogprob


@dataclass(frozen=True)
class Reference:
    """A model in float32, run without a cache."""

    model: Any

    @classmethod
    def load(cls, folder: Path) -> "Reference":
        """From a checkpoint's folder."""
        return cls(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())

    def logprobs(self, token_ids: TokenIds) -> torch.Tensor:
        """Log-probabilities of what follows each position, shape (positions, vocabulary)."""
        with torch.no_grad():
            return torch.log_softmax(self.model(torch.tensor([token_ids])).logits[0], dim=-1)

    def hidden(self, token_ids: TokenIds) -> torch.Tensor:
        """The last layer's output, shape (positions, dimensions)."""
        return self.hidden_of(token_ids, -1)

    def hidden_of(self, token_ids: TokenIds, layer: int) -> torch.Tensor:
        """hidden_states[layer], likewise; that of the last layer has the final layer norm, the others do not."""
        with torch.no_grad():
            return self.model(torch.tensor([token_ids]), output_hidden_states=True).hidden_states[layer][0]

    def final_norm(self, hidden: torch.Tensor) -> torch.Tensor:
        """The final layer norm of any layer's output."""
        with torch.no_grad():
            return self.model.gpt_neox.final_layer_norm(hidden)

    def last_without_norm(self, token_ids: TokenIds) -> torch.Tensor:
        """The last layer's output as it comes out of the layer."""
        seen: list[Any] = []
        hook = self.model.gpt_neox.layers[-1].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        self.hidden(token_ids)
        hook.remove()
        (output,) = seen
        return (output[0] if isinstance(output, tuple) else output).reshape(len(token_ids), -1)

    def greedy(self, token_ids: TokenIds, count: int) -> TokenIds:
        """The likeliest continuation, token by token."""
        text = token_ids
        for _ in range(count):
            text = (*text, int(self.logprobs(text)[-1].argmax()))
        return text[len(token_ids) :]

    def candidates(self, token_ids: TokenIds, count: int) -> list[PositionLogprobs]:
        """The likeliest next tokens."""
        values, ids = self.logprobs(token_ids)[-1].topk(count)
        return [PositionLogprobs(TokenLogprob(int(i), float(v), rank + 1, "")) for rank, (v, i) in enumerate(zip(values, ids, strict=True))]
