"""Streams of text in many languages from vLLM with GPT-NeoX-20B's tokenizer contain only whole characters.

The model has random weights; structured outputs make it generate a given text. Its worker runs in the engine core's process ("uni"), whose
tokens are compared with transformers' here.
"""

import json
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.types import Choice, Finish, FinishReason, GenerationRequest, Pool, Sampling, Stopping
from neox_serve.engine.factory import read_token_table
from neox_serve.engine.protocol import Engine
from neox_serve.model import model_files
from tests.e2e.reference import Reference
from tests.engines import Running, settings_of
from tests.fakes.recording_sink import RecordingSink, ask, stopping
from tests.unit.engine.test_detokenizer import NEOX_TOKENIZER, complete

pytestmark = pytest.mark.e2e

TEXTS = ["中文字符:你好,世界。", "نص عربي", "हिन्दी वाक्य", "👩‍👩‍👧‍👦 🇩🇪 👍🏽", "ქართული ไทย", "x = 'ß€𝄞'"]
REQUEST = GenerationRequest("request", (510, 3158), Stopping(max_tokens=80), Sampling(temperature=0.0))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-NeoX with the 20B tokenizer."""
    if not NEOX_TOKENIZER.is_file():
        pytest.skip(f"the GPT-NeoX-20B tokenizer is not at {NEOX_TOKENIZER}")
    folder = tmp_path_factory.mktemp("neox-20b-tokenizer")
    torch.manual_seed(3)
    config = GPTNeoXConfig(
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
    )
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    shutil.copy(NEOX_TOKENIZER, folder / "tokenizer.json")
    names = {"tokenizer_class": "GPTNeoXTokenizerFast", "eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names | {"clean_up_tokenization_spaces": False}))
    return folder


@pytest.fixture(scope="module")
async def engine(checkpoint: Path) -> AsyncIterator[Engine]:
    """An engine on that checkpoint. The last test closes it."""
    settings = settings_of(Pool.GENERATION, {"executor_backend": "uni"}, source=str(checkpoint))
    running = await Running.start(Pool.GENERATION, settings)
    yield running.engine
    await running.engine.close()
    assert running.left() == ([], [])


async def test_tokens_of_a_worker_in_the_engine_core_equal_those_of_transformers(engine: Engine, checkpoint: Path) -> None:
    answer = await ask(engine, stopping(REQUEST, max_tokens=12, ignore_eos=True))
    assert answer.token_ids() == Reference.load(checkpoint).greedy(REQUEST.prompt_token_ids, 12)


@pytest.mark.parametrize("text", TEXTS)
async def test_stream_of_any_language_consists_of_whole_characters(engine: Engine, text: str) -> None:
    answer = await ask(engine, replace(REQUEST, structured_output=Choice((text,))))
    assert answer.text() == text
    assert "\ufffd" not in "".join(part.text for part in answer.parts())
    assert len(answer.parts()) == len(answer.token_ids()), "one delta per token"
    assert answer.parts()[-1].finish == Finish(FinishReason.STOP)


async def test_max_tokens_inside_a_character_omits_the_character(engine: Engine, checkpoint: Path) -> None:
    table = read_token_table(model_files.locate_tokenizer(str(checkpoint), None))
    whole = await ask(engine, replace(REQUEST, structured_output=Choice((TEXTS[0],))))
    cut_inside = 0
    for count in range(1, len(whole.token_ids())):
        answer = await ask(engine, stopping(replace(REQUEST, structured_output=Choice((TEXTS[0],))), max_tokens=count))
        raw = b"".join(map(table.text_bytes, answer.token_ids()))
        cut_inside += answer.text().encode() != raw
        assert TEXTS[0].startswith(answer.text())
        assert answer.text() == complete(raw)
        assert answer.parts()[-1].finish == Finish(FinishReason.LENGTH)
    assert cut_inside > 0, "no cut fell inside a character"


@pytest.mark.parametrize(("stop", "shown"), [("世", "中文字符:你好,"), ("好,世界", "中文字符:你"), ("。", "中文字符:你好,世界")])
@pytest.mark.parametrize("include", [False, True])
async def test_stop_sequence_ends_the_text_between_characters(engine: Engine, stop: str, shown: str, include: bool) -> None:
    request = stopping(replace(REQUEST, structured_output=Choice((TEXTS[0],))), stop_sequences=(stop,), include_stop_in_output=include)
    answer = await ask(engine, request)
    assert answer.text() == shown + (stop if include else "")
    assert answer.parts()[-1].finish == Finish(FinishReason.STOP, stop)


async def test_close_ends_running_requests_with_replica_lost(engine: Engine) -> None:
    sink = RecordingSink()
    await engine.generate("running", stopping(REQUEST, max_tokens=1500, ignore_eos=True), sink)
    await sink.until("running", deltas=2)
    await engine.close()
    failure = sink.of("running")[-1].failure
    assert failure is not None
    assert failure.reason is Reason.REPLICA_LOST
    with pytest.raises(ServeError):
        await engine.check_health()
