"""The generated blocking client."""

import pytest

from tools.generate_sync_client import SENTENCES, SOURCE, TARGET, generate


def test_sync_client_is_up_to_date() -> None:
    expected = generate(SOURCE.read_text(encoding="utf-8"))
    assert TARGET.read_text(encoding="utf-8") == expected, "neox_serve/client/sync_client.py is stale: run `make generate-client`"


def test_generate_replaces_asyncio_by_blocking_code() -> None:
    source = "\n".join(f'"""{sentence}"""' if not sentence.startswith("#") else sentence for sentence in SENTENCES)
    source += "\nasync def run(stream: AsyncStream) -> None:\n    async with stream:\n        await stream.__anext__()\n"
    assert generate(source).endswith("\n\ndef run(stream: Stream) -> None:\n    with stream:\n        stream.__next__()\n")


@pytest.mark.parametrize("source", ["", "\n".join(SENTENCES) + "\nimport asyncio\n"])
def test_generate_refuses_a_source_that_it_cannot_replace_whole(source: str) -> None:
    with pytest.raises(ValueError, match=r"not in the asyncio client|is left"):
        generate(source)
