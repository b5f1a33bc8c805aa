"""A vLLM kernel for 4-bit weights on CPUs without AVX-512, for which vLLM has no kernel. It uses torch's weight-only GEMM.

It supports the same checkpoints as vLLM's kernels: compressed-tensors or GPTQ, symmetric, with groups.
"""

import torch
from vllm.model_executor.kernels.linear import register_linear_kernel
from vllm.model_executor.kernels.linear.mixed_precision.MPLinearKernel import MPLinearKernel, MPLinearLayerConfig
from vllm.model_executor.layers.quantization.utils.quant_utils import unpack_quantized_values_into_int32
from vllm.platforms import PlatformEnum, current_platform
from vllm.scalar_type import scalar_types

_GROUP_SIZES = (32, 64, 128, 256)


class TorchInt4Kernel(MPLinearKernel):  # type: ignore[misc]
    """Repacks each weight once for torch's GEMM. Shapes: inputs [..., in], weights [out, in], scales [out, in / group size]."""

    @classmethod
    def get_min_capability(cls) -> int:
        """Returns -1: CPUs have no compute capability."""
        return -1

    @classmethod
    def can_implement(cls, c: MPLinearLayerConfig) -> tuple[bool, str | None]:
        """Returns whether the kernel supports a layer, and the reason if not."""
        inputs, outputs = c.partition_weight_shape
        if not current_platform.is_cpu():
            return False, "supports only CPUs"
        if c.weight_type != scalar_types.uint4b8 or c.zero_points:
            return False, "requires symmetric 4-bit weights"
        if c.group_size not in _GROUP_SIZES or inputs % c.group_size or outputs % 16:
            return False, f"requires a group size of {_GROUP_SIZES} that divides the inputs, and a multiple of 16 outputs"
        return True, None

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Repacks the weights and scales of a layer."""
        packed, scales = getattr(layer, self.w_q_name), getattr(layer, self.w_s_name)
        weights = packed.data.t() if packed.input_dim == 0 else packed.data
        values = unpack_quantized_values_into_int32(weights.contiguous(), self.config.weight_type, 1)
        scale = scales.data if scales.output_dim == 0 else scales.data.t()
        pairs = torch.stack([scale.t(), torch.zeros_like(scale.t())], dim=-1).to(self.config.act_type).contiguous()
        for name, value in ((self.w_q_name, torch.ops.aten._convert_weight_to_int4pack_for_cpu(values, 1)), (self.w_s_name, pairs)):
            setattr(layer, name, torch.nn.Parameter(value, requires_grad=False))

    def apply_weights(self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Returns x times the weights, plus the bias. Shape: [..., out]."""
        weights, scales, _ = self._get_weight_params(layer)
        flat = x.reshape(-1, x.shape[-1])
        product = torch.ops.aten._weight_int4pack_mm_for_cpu(flat, weights, self.config.group_size, scales)
        product = product.view(*x.shape[:-1], -1)
        return product if bias is None else product + bias


def register() -> None:
    """Registers the kernel with vLLM, which uses it if its own kernel is disabled (see engine/environment.py)."""
    register_linear_kernel(TorchInt4Kernel, PlatformEnum.CPU)
