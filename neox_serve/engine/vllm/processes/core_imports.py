"""What an engine core on CPUs imports, as a module for the fork server of `engine_forks` to import.

The collector would go through a growing heap again and again and find nothing: a quarter of the time.
"""

import gc

import setproctitle

setproctitle.getproctitle()  # finds where the title is while the environment still lies behind it, for vLLM to name its processes
gc.disable()

import transformers.models.gpt_neox.modeling_gpt_neox  # noqa: E402, F401
import vllm.model_executor.models.transformers  # noqa: E402
import vllm.v1.engine.core  # noqa: E402
import vllm.v1.worker.cpu_worker  # noqa: E402, F401

gc.freeze()
gc.enable()
