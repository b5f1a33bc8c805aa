"""Importing the Serve application in a fresh process."""

import subprocess
import sys


def test_import_of_the_application_loads_no_engine_library() -> None:
    """A replica sets environment variables for its engine, which torch and vLLM read when they are imported."""
    code = "import sys; import deployments.app; found = {'torch', 'vllm', 'transformers'} & set(sys.modules); assert not found, found"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
