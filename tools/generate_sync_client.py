"""Generates the blocking client from the asyncio one: `make generate-client`.

The two clients differ only in words: `async` and `await`, the names that begin with "Async", and a few sentences about concurrency. What
really differs between grpc and grpc.aio is in neox_serve/client/{async,sync}_transport.py, which are written by hand.
"""

import re
import subprocess
import sys
from pathlib import Path

_CLIENT = Path(__file__).parent.parent / "neox_serve" / "client"
SOURCE, TARGET = _CLIENT / "async_client.py", _CLIENT / "sync_client.py"

SENTENCES = {
    "The asyncio client. It belongs to the event loop that first uses it. Cancelling the task that awaits a method cancels the call.": (
        "The blocking client. It may be shared between threads."
    ),
    "# `make generate-client` generates sync_client.py from this file; see tools/generate_sync_client.py for what it replaces.": (
        "# Generated from async_client.py by `make generate-client`. Do not edit."
    ),
    "an async context manager": "a context manager",
    "any task of the event loop": "any thread",
}
"""Sentences that hold for one client only. Each of them must occur in the source."""

TOKENS = {
    r"async (def|with|for)\b": r"\1",
    r"await ": "",
    r"\bAsync(?=[A-Z])": "",
    r"\basync_transport\b": "sync_transport",
    r"__a(enter|exit|next|iter)__": r"__\1__",
    r"\bStopAsyncIteration\b": "StopIteration",
}
"""Patterns and their replacements, applied to all of the source."""


def generate(source: str) -> str:
    """The blocking client's source, formatted. Raises ValueError if a sentence to replace is missing or a word of asyncio is left."""
    for sentence, replacement in SENTENCES.items():
        if sentence not in source:
            raise ValueError(f"not in the asyncio client: {sentence!r}")
        source = source.replace(sentence, replacement)
    for pattern, replacement in TOKENS.items():
        source = re.sub(pattern, replacement, source)
    if left := re.search(r"\b(async|await|asyncio)\b", source.replace("async_client.py", "")):
        raise ValueError(f"{left[0]!r} is left in the blocking client")
    return _ruff("format", _ruff("check", source, "--fix-only", "--select", "I"))


def _ruff(command: str, source: str, *options: str) -> str:
    arguments = [sys.executable, "-m", "ruff", command, "-q", "--stdin-filename", str(TARGET), *options, "-"]
    return subprocess.run(arguments, input=source, stdout=subprocess.PIPE, text=True, check=True).stdout


if __name__ == "__main__":
    TARGET.write_text(generate(SOURCE.read_text(encoding="utf-8")), encoding="utf-8")
