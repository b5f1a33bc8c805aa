"""Bytes of the parameters of vLLM's own models: `python -m tests.e2e.engine.vllm_weights FOLDER DTYPE ...` prints a line for each.

The models are made as vLLM's loader makes them, but without memory behind their matrices; a folder needs no more than its config.json.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from neox_serve.engine.vllm.plugins.kernels import VLLM_INT4_KERNEL


def vllm_weight_bytes(*models: tuple[Path, str]) -> list[int]:
    """Of each, by its folder and dtype; in a process of its own, since vLLM changes what it is loaded into.

    4-bit ones with our kernel, which works on any CPU.
    """
    told = [str(part) for model in models for part in model]
    command, environment = [sys.executable, "-m", __name__, *told], {**os.environ, "VLLM_DISABLED_KERNELS": VLLM_INT4_KERNEL}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.splitlines() if line.isdecimal()]


def main(arguments: list[str]) -> None:
    """Pairs of a model's folder and its dtype."""
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.torch_utils import set_default_torch_dtype

    with tempfile.TemporaryDirectory() as folder:
        for number, (model_folder, dtype) in enumerate(zip(arguments[::2], arguments[1::2], strict=True)):
            config = EngineArgs(model=model_folder, dtype=dtype, skip_tokenizer_init=True).create_engine_config()
            with set_current_vllm_config(config):
                if number == 0:
                    init_distributed_environment(1, 0, f"file://{Path(folder) / 'store'}", 0, "gloo")
                    initialize_model_parallel()
                with torch.device("meta"), set_default_torch_dtype(config.model_config.dtype):
                    model = initialize_model(config)
            print(sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()))


if __name__ == "__main__":
    main(sys.argv[1:])
