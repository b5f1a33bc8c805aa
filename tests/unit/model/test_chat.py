import json
from pathlib import Path

import pytest

from neox_serve.model.chat import DEFAULT_TEMPLATE, ChatTemplateError, read_template, render

ASKED = [{"role": "user", "content": "Hi {{ 1 + 1 }}"}]


def test_render_keeps_message_text_unchanged() -> None:
    assert render(DEFAULT_TEMPLATE, ASKED, end_of_text="<|endoftext|>") == "User: Hi {{ 1 + 1 }}\nAssistant:"


def test_template_file_takes_precedence_over_the_tokenizer_config(tmp_path: Path) -> None:
    assert read_template(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "B"}))
    assert read_template(tmp_path) == "B"
    (tmp_path / "chat_template.jinja").write_text("A")
    assert read_template(tmp_path) == "A"


@pytest.mark.parametrize(
    "template",
    ["{% for %}", "{{ raise_exception('only one turn') }}", "{{ messages.__class__.__mro__ }}", "{{ messages.append(1) }}"],
    ids=["broken", "refuses", "reaches out", "changes what it is given"],
)
def test_template_that_is_invalid_or_leaves_the_sandbox_raises(template: str) -> None:
    with pytest.raises(ChatTemplateError):
        render(template, ASKED, end_of_text="|")
