"""Imports everything that an engine core on CPUs imports. The fork server (see forks.py) preloads this module.

The garbage collector is off meanwhile: it would scan a growing heap repeatedly without finding garbage, a quarter of the import time.
"""

import gc

import setproctitle

setproctitle.getproctitle()  # must run before the environment changes, so that vLLM can set process titles later
gc.disable()

import transformers.models.gpt_neox.modeling_gpt_neox  # noqa: E402, F401
import vllm.model_executor.models.transformers  # noqa: E402
import vllm.v1.engine.core  # noqa: E402
import vllm.v1.worker.cpu_worker  # noqa: E402, F401

gc.freeze()
gc.enable()
