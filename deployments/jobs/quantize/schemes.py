"""What is stored of a weight: integers of few bits, and scales. The schemes are symmetric, so no offsets are stored."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32

_SCALE_STEPS = 40
_SMALLEST_SCALE_FRACTION = 0.6


@dataclass(frozen=True, slots=True)
class Scheme:
    """A quantization scheme."""

    name: str
    """The usual name, for example w4a16."""
    bits: int
    """Bits per weight."""
    group: int
    """Number of inputs that share a scale; 0 if all inputs of an output do."""
    activation_bits: int
    """Bits to which a matrix's inputs are rounded, with a scale for each token; 0 if they are not rounded."""

    @property
    def largest(self) -> int:
        """The largest integer; the smallest is -largest - 1."""
        return int(2 ** (self.bits - 1)) - 1

    def config(self) -> Mapping[str, Any]:
        """Returns the `quantization_config` for a checkpoint's config.json. Source: compressed-tensors' QuantizationConfig."""
        weights = {"num_bits": self.bits, "type": "int", "symmetric": True, "strategy": "group" if self.group else "channel"}
        weights |= {"group_size": self.group} if self.group else {}
        inputs = {"num_bits": self.activation_bits, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
        return {
            "quant_method": "compressed-tensors",
            "quantization_status": "compressed",
            "format": "pack-quantized" if self.packed else "int-quantized",
            "config_groups": {
                "group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs if self.activation_bits else None}
            },
            "ignore": ["lm_head", "embed_out"],
        }

    @property
    def packed(self) -> bool:
        """Whether several weights are packed into a 32-bit integer."""
        return not self.activation_bits

    def scales(self, weight: torch.Tensor) -> torch.Tensor:
        """Returns the scales with the smallest rounding error, [outputs, 1].

        `weight` is the part of a weight whose inputs share a scale, [outputs, inputs].
        """
        highest = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-8) / self.largest
        best, min_cost = highest, torch.full_like(highest, float("inf"))
        for step in range(_SCALE_STEPS if self.bits < 8 else 1):
            scale = highest * (1 - (1 - _SMALLEST_SCALE_FRACTION) * step / _SCALE_STEPS)
            cost = (self.to_integers(weight, scale) * scale - weight).square().sum(dim=1, keepdim=True)
            best, min_cost = torch.where(cost < min_cost, scale, best), torch.minimum(cost, min_cost)
        return best

    def to_integers(self, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Returns the integers for a weight under these scales."""
        return (weight / scale).round().clamp(-self.largest - 1, self.largest)

    def to_tensors(self, integers: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> Mapping[str, torch.Tensor]:
        """Returns the tensors that a checkpoint stores, by the last part of their names.

        `integers` has the shape [outputs, inputs], and `scales` [outputs, groups].
        """
        small = integers.to(torch.int8)
        if not self.packed:
            return {"weight": small, "weight_scale": scales.to(dtype)}
        return {
            "weight_packed": pack_to_int32(small, self.bits),
            "weight_scale": scales.to(dtype),
            "weight_shape": torch.tensor(integers.shape, dtype=torch.int64),
        }

    def from_tensors(self, stored: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the weight that stored tensors represent, float32 [outputs, inputs]."""
        scales = stored["weight_scale"].float()
        if not self.packed:
            return stored["weight"].float() * scales
        integers = unpack_from_int32(stored["weight_packed"], self.bits, torch.Size(stored["weight_shape"].tolist())).float()
        return integers * scales.repeat_interleave(self.group, dim=1)[:, : integers.shape[1]]


SCHEMES: Mapping[str, Scheme] = {scheme.name: scheme for scheme in (Scheme("w8a8", 8, 0, 8), Scheme("w4a16", 4, 128, 0))}
"""The schemes by name."""
