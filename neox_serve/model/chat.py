"""Chat templates: they turn messages into the text format that a model was trained on.

A template is a Jinja template in the format of transformers: the file chat_template.jinja in a model's or an adapter's folder, or an entry
in its tokenizer_config.json. Since the folder may come from a tenant, the template runs in Jinja's sandbox.
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

TEMPLATE_FILE = "chat_template.jinja"
"""File name of a chat template."""
_CONFIG_FILE = "tokenizer_config.json"
ROLES = ("system", "user", "assistant")
"""Roles that a message may have."""

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
"""Template for models without one, since GPT-NeoX was not trained on chats. A turn ends with the end-of-text token."""

Message = Mapping[str, str]
"""A message has the keys `role` (one of ROLES) and `content` (text)."""


class ChatTemplateError(Exception):
    """The template is invalid or rejects the messages."""


def read_template(folder: Path) -> str | None:
    """Returns the template in a model's or an adapter's folder, or None. Raises OSError or ValueError for an unreadable file."""
    file, config = folder / TEMPLATE_FILE, folder / _CONFIG_FILE
    if file.is_file():
        return file.read_text(encoding="utf-8")
    values = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    found = values.get("chat_template")
    return found if isinstance(found, str) else None


def render(template: str, messages: Sequence[Message], *, end_of_text: str, reply: bool = True) -> str:
    """Renders messages. reply: append the start of the assistant's next turn. Raises ChatTemplateError."""
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
