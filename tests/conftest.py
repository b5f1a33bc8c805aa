"""Fixtures and settings that all tests share."""

import os
import signal

import pytest
from hypothesis import settings

pytest_plugins = ["tests.engines", "tests.databases"]

# A wall-clock limit per example would make tests fail on a busy machine.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")


def pytest_configure(config: pytest.Config) -> None:
    """Makes the tests independent of how they are started.

    A shell ignores SIGINT in its background jobs, and the processes that a test starts inherit that: they could not be interrupted.
    `make test` passes its flags on to every `make` that a test starts, which would then print more and may use other options.
    """
    for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
        os.environ.pop(name, None)
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
