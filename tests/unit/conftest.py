"""Unit tests run without torch, transformers and vLLM, whose imports take longer than the tests."""

import sys
from pathlib import Path

import pytest

ENGINE_LIBRARIES = frozenset({"torch", "transformers", "vllm"})
UNIT = Path(__file__).parent


def pytest_collection_finish(session: pytest.Session) -> None:
    """Stops a run of unit tests if one of their modules imports an engine library. Such a test belongs in tests/integration."""
    imported = ENGINE_LIBRARIES & sys.modules.keys()
    if imported and all(item.path.is_relative_to(UNIT) for item in session.items):
        raise pytest.UsageError(f"unit tests import {', '.join(sorted(imported))}: move them to tests/integration")
