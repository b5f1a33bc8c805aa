"""Quantized weights on CPUs: registers kernels with vLLM in every process of an engine. They are in `int4_kernel` and `int8_kernel`."""

VLLM_INT4_KERNEL = "CPUWNA16LinearKernel"
"""Name of vLLM's own 4-bit kernel for CPUs, which requires AVX-512 and 16-bit activations."""
VLLM_INT8_KERNEL = "CPUInt8ScaledMMLinearKernel"
"""Name of vLLM's own 8-bit kernel for CPUs. On CPUs with AMX it fails for models of the Transformers backend."""


def register() -> None:
    """Registers the kernels. vLLM calls it through the entry point `vllm.general_plugins`, and uses ours if its own are disabled."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        from neox_serve.engine.vllm.plugins import int4_kernel, int8_kernel

        int4_kernel.register()
        int8_kernel.register()
