"""What is stored of a weight: whole numbers of few bits, and scales. Symmetric: 0 is 0, so no offsets are stored."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32

_SCALE_STEPS = 40
_SMALLEST_SCALE_FRACTION = 0.6


@dataclass(frozen=True, slots=True)
class Scheme:
    """name: as the field has it. bits: of a weight. group: inputs that share a scale; 0: all of an output.

    activation_bits: 0 where what comes into a matrix stays as it is; else it is rounded too, each token with a scale of its own.
    """

    name: str
    bits: int
    group: int
    activation_bits: int

    @property
    def largest(self) -> int:
        """The largest whole number; the smallest is one beyond it."""
        return int(2 ** (self.bits - 1)) - 1

    def config(self) -> Mapping[str, Any]:
        """`quantization_config` of a checkpoint's config.json. Source: compressed-tensors' QuantizationConfig."""
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
        """Whether several weights share a whole number of 32 bits."""
        return not self.activation_bits

    def scales(self, weight: torch.Tensor) -> torch.Tensor:
        """Of a part of a weight, [outputs, inputs that share one]; those under which rounding costs the least, [outputs, 1]."""
        highest = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-8) / self.largest
        best, least = highest, torch.full_like(highest, float("inf"))
        for step in range(_SCALE_STEPS if self.bits < 8 else 1):
            scale = highest * (1 - (1 - _SMALLEST_SCALE_FRACTION) * step / _SCALE_STEPS)
            cost = (self.rounded(weight, scale) * scale - weight).square().sum(dim=1, keepdim=True)
            best, least = torch.where(cost < least, scale, best), torch.minimum(cost, least)
        return best

    def rounded(self, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """The whole numbers that stand for it."""
        return (weight / scale).round().clamp(-self.largest - 1, self.largest)

    def stored(self, numbers: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> Mapping[str, torch.Tensor]:
        """Tensors of a checkpoint, by what follows the layer's name. numbers: [outputs, inputs]. scales: [outputs, groups]."""
        small = numbers.to(torch.int8)
        if not self.packed:
            return {"weight": small, "weight_scale": scales.to(dtype)}
        return {
            "weight_packed": pack_to_int32(small, self.bits),
            "weight_scale": scales.to(dtype),
            "weight_shape": torch.tensor(numbers.shape, dtype=torch.int64),
        }

    def opened(self, stored: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The weight that the tensors of `stored` stand for, float32 [outputs, inputs]."""
        scales = stored["weight_scale"].float()
        if not self.packed:
            return stored["weight"].float() * scales
        numbers = unpack_from_int32(stored["weight_packed"], self.bits, torch.Size(stored["weight_shape"].tolist())).float()
        return numbers * scales.repeat_interleave(self.group, dim=1)[:, : numbers.shape[1]]


SCHEMES: Mapping[str, Scheme] = {scheme.name: scheme for scheme in (Scheme("w8a8", 8, 0, 8), Scheme("w4a16", 4, 128, 0))}
