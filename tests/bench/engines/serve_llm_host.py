"""Ray's own LLM serving: `build_openai_app` of `ray.serve.llm` behind Serve's HTTP proxy.

`python -m tests.bench.engines.serve_llm_host <arguments.json> <port>` runs until SIGTERM.
"""

import json
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import ray
from ray import serve

_LOGICAL_CPUS = 8


def serve_model(arguments: dict[str, Any], port: int) -> None:
    """Starts Ray and the application. `arguments` are those of LLMConfig."""
    from ray.serve.llm import LLMConfig, build_openai_app

    # More CPUs than a small machine has, because ingress and replica request some and would otherwise wait forever.
    ray.init(address="local", num_cpus=_LOGICAL_CPUS, include_dashboard=False, logging_level="warning")
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build_openai_app({"llm_configs": [LLMConfig(**arguments)]}), name="llm")


def main() -> None:
    """Starts the application and waits for SIGTERM."""
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    try:
        serve_model(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), int(sys.argv[2]))
        while not stopped.wait(1.0):
            pass
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
