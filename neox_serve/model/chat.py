"""Chat templates: from messages to the text that a model was trained on.

A template is Jinja's, as transformers keeps it: in chat_template.jinja of a model's or an adapter's folder, or in its
tokenizer_config.json. It comes from whoever made the folder, so it runs in Jinja's sandbox.
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

TEMPLATE_FILE = "chat_template.jinja"
_CONFIG_FILE = "tokenizer_config.json"
ROLES = ("system", "user", "assistant")

DEFAULT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role == "assistant" -%}
Assistant: {{ message.content }}{{ eos_token }}
{%- elif message.role == "user" -%}
User: {{ message.content }}
{% else -%}
{{ message.content }}
{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
Assistant:
{%- endif -%}
"""
"""For models that have none; GPT-NeoX was not trained on chats. The end of a turn is the end of text, which stops a generation."""

Message = Mapping[str, str]
"""role: one of ROLES. content: text."""


class ChatTemplateError(Exception):
    """The template refuses the messages, or is none."""


def read_template(folder: Path) -> str | None:
    """The template in a model's or an adapter's folder; None where there is none. Raises OSError, ValueError."""
    file, config = folder / TEMPLATE_FILE, folder / _CONFIG_FILE
    if file.is_file():
        return file.read_text(encoding="utf-8")
    values = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    found = values.get("chat_template")
    return found if isinstance(found, str) else None


def render(template: str, messages: Sequence[Message], *, end_of_text: str, reply: bool = True) -> str:
    """The text of the messages. reply: with what begins the assistant's next turn. Raises ChatTemplateError."""
    try:
        compiled = _compiled(template)
        return compiled.render(messages=messages, add_generation_prompt=reply, eos_token=end_of_text, bos_token=end_of_text)
    except jinja2.TemplateError as error:
        raise ChatTemplateError(f"{type(error).__name__}: {error}") from error


@lru_cache(maxsize=64)
def _compiled(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.globals["raise_exception"] = _refuse
    return environment.from_string(template)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
