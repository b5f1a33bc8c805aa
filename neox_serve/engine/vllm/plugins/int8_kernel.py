"""vLLM's kernel for 8-bit weights and activations on CPUs, for inputs of any type and number of dimensions.

On CPUs with AMX, vLLM's own kernel calls an operator that takes only matrices of 16-bit numbers. Models of the Transformers backend such
as GPT-NeoX pass [batch, tokens, in], and engines may compute in float32; the engine core would end with an error at the first request.
"""

import torch
from vllm.model_executor.kernels.linear import register_linear_kernel
from vllm.model_executor.kernels.linear.scaled_mm.cpu import CPUInt8ScaledMMLinearKernel
from vllm.platforms import PlatformEnum


class AnyInputInt8Kernel(CPUInt8ScaledMMLinearKernel):  # type: ignore[misc]
    """Computes with vLLM's kernel on inputs flattened to matrices. Shapes: inputs [..., in], outputs [..., out]."""

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Packs a layer's weights: for AMX if vLLM chooses it and the engine computes in 16 bits, otherwise for oneDNN."""
        if torch.get_default_dtype() is torch.float32:
            self.linear_method = self._apply_weights_onednn
            self.process_weights_for_onednn(layer)
        else:
            super().process_weights_after_loading(layer)

    def apply_weights(self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Returns x times the weights, plus the bias. Shape: [..., out]."""
        product = super().apply_weights(layer, x.reshape(-1, x.shape[-1]), bias)
        return product.view(*x.shape[:-1], -1)


def register() -> None:
    """Registers the kernel with vLLM, which uses it if its own kernel is disabled (see engine/environment.py)."""
    register_linear_kernel(AnyInputInt8Kernel, PlatformEnum.CPU, "int8")
