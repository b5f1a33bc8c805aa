"""Fixtures that several kinds of tests share."""

import signal

import pytest

pytest_plugins = ["tests.engines", "tests.databases"]


def pytest_configure(config: pytest.Config) -> None:
    """Makes the tests independent of how they are started.

    A shell ignores SIGINT in its background jobs, and the processes that a test starts inherit that: they could not be interrupted.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
