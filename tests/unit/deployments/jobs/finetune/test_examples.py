import json
from pathlib import Path
from typing import Any

import pytest

from deployments.jobs.bulk.rows import BadRow
from deployments.jobs.finetune.examples import Example, Reader
from neox_serve.model.chat import DEFAULT_TEMPLATE

END = "|"


def reader(template: str = DEFAULT_TEMPLATE, max_tokens: int = 200) -> Reader:
    """Returns one token per character."""
    return Reader(lambda text: [ord(character) for character in text], template, END, max_tokens)


def told(example: Example) -> tuple[str, str]:
    """Returns the text of an example and the part that is learned."""
    text = "".join(map(chr, example.token_ids))
    return text, "".join(character for character, learned in zip(text, example.learned, strict=True) if learned)


def test_completion_is_learned_with_the_end_of_text() -> None:
    assert told(reader().example({"prompt": "2+2=", "completion": "4"})) == ("2+2=4|", "4|")


def test_assistant_messages_are_learned_with_the_end_of_their_turn() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "A?"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "B?"},
        {"role": "assistant", "content": "b"},
    ]
    text, learned = told(reader().example({"messages": messages}))
    assert text == "Be brief.\nUser: A?\nAssistant: a|User: B?\nAssistant: b|"
    assert learned == " a| b|"


def test_messages_after_the_last_assistant_turn_are_left_out() -> None:
    messages = [{"role": "user", "content": "A"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "B"}]
    assert told(reader().example({"messages": messages}))[0] == "User: A\nAssistant: a|"


def test_template_that_changes_earlier_turns_is_refused() -> None:
    last_only = "{{ messages[-1].content }}{% if add_generation_prompt %}:{% endif %}"
    messages = [{"role": "user", "content": "A"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(ValueError, match="changes a turn when another one follows"):
        reader(last_only).example({"messages": messages})


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ([], "must be a JSON object, got list"),
        ({"prompt": "a"}, "completion: got None, must be a non-empty text"),
        ({"prompt": "", "completion": "b"}, "prompt: got '', must be a non-empty text"),
        ({"prompt": "a", "completion": "b", "label": 1}, "label: unknown key; the keys are completion, prompt"),
        ({"messages": []}, "messages: must be a non-empty list"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\]: must be an object of role and content"),
        ({"messages": [{"role": "bot", "content": "x"}]}, r"messages\[0\].role: got 'bot', must be one of system, user, assistant"),
        ({"messages": [{"role": "user", "content": 1}]}, r"messages\[0\].content: got 1, must be a text"),
        ({"messages": [{"role": "user", "content": "x"}]}, "contains nothing to learn"),
        ({"prompt": "a" * 200, "completion": "b"}, "has 202 tokens; at most 200 are allowed"),
    ],
)
def test_invalid_row_is_refused_with_its_field(row: Any, problem: str) -> None:
    with pytest.raises((ValueError, TypeError), match=problem):
        reader().example(row)


def test_bad_rows_have_their_line_number_and_blank_lines_count(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n\n{nothing\n" + json.dumps({"prompt": "c"}) + "\n")
    first, second, third = reader().read(str(file))
    assert isinstance(first, Example)
    assert isinstance(second, BadRow)
    assert isinstance(third, BadRow)
    assert (second.number, second.line, third.number) == (3, "{nothing", 4)
