"""Fixtures and settings that all tests share."""

from hypothesis import settings

pytest_plugins = ["tests.engines", "tests.databases"]

# A wall-clock limit per example would make tests fail on a busy machine.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")
