"""4-bit weights on CPUs: says to vLLM where a kernel of ours serves them, in every process of an engine. The kernel is in `int4_kernel`."""

VLLMS_OWN = "CPUWNA16LinearKernel"
"""vLLM's kernel for CPUs. It needs AVX-512, and activations of 16 bits."""


def register() -> None:
    """The entry point of vLLM's plugins."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        from neox_serve.engine.vllm.plugins import int4_kernel

        int4_kernel.register()
