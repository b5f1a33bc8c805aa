"""4-bit weights on CPUs: registers a kernel with vLLM in every process of an engine. The kernel is in `int4_kernel`."""

VLLMS_OWN = "CPUWNA16LinearKernel"
"""Name of vLLM's own kernel for CPUs, which requires AVX-512 and 16-bit activations."""


def register() -> None:
    """Registers the kernel. vLLM calls it through the entry point `vllm.general_plugins`."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        from neox_serve.engine.vllm.plugins import int4_kernel

        int4_kernel.register()
