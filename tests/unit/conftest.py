"""Unit tests run without torch, transformers and vLLM, whose imports take longer than the tests."""

import gc
import sys
from pathlib import Path

import pytest

ENGINE_LIBRARIES = frozenset({"torch", "transformers", "vllm"})
UNIT = Path(__file__).parent


def pytest_collection_finish(session: pytest.Session) -> None:
    """Stops a run of unit tests if one of their modules imports an engine library. Such a test belongs in tests/integration.

    It also exempts everything imported so far from garbage collection, which takes a third of the time of some tests.
    """
    imported = ENGINE_LIBRARIES & sys.modules.keys()
    if imported and all(item.path.is_relative_to(UNIT) for item in session.items):
        raise pytest.UsageError(f"unit tests import {', '.join(sorted(imported))}: move them to tests/integration")
    if session.items and session.items[0].path.is_relative_to(UNIT):
        gc.collect()
        gc.freeze()
