"""Examples of a fine-tuning job: converts lines of JSON to token ids, some of which are learned.

{"prompt": text, "completion": text}: the completion and the end of text after it are learned. {"messages": [{"role": ..., "content": ...},
...]}: the messages of the assistant are learned, including what the chat template puts after them. Prompts and what follows them are
tokenized separately, as they are when the adapter is served.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deployments.jobs.bulk.rows import BadRow
from deployments.jobs.files.storage import reading
from neox_serve.model.chat import ROLES, ChatTemplateError, Message, render

Encode = Callable[[str], Sequence[int]]
"""Converts a text to token ids."""


@dataclass(frozen=True, slots=True)
class Example:
    """An example as token ids."""

    token_ids: tuple[int, ...]
    """All token ids."""
    learned: tuple[bool, ...]
    """Whether each token is learned. The first one never is, since nothing precedes it."""


@dataclass(frozen=True, slots=True)
class Reader:
    """Converts rows to examples."""

    encode: Encode
    """The tokenizer."""
    template: str
    """The chat template."""
    end_of_text: str
    """The end-of-text token as text."""
    max_tokens: int
    """Maximum number of tokens of an example."""

    def read(self, file: str) -> Iterator[Example | BadRow]:
        """Yields the rows of a JSON lines file; skips blank lines. Raises OSError."""
        with reading(file) as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    try:
                        yield self.example(json.loads(line))
                    except (ValueError, TypeError, RecursionError, ChatTemplateError) as error:
                        yield BadRow(number, str(error), line.decode("utf-8", "replace").rstrip("\r\n"))

    def example(self, values: Any) -> Example:
        """Converts the values of a row. Raises ValueError, TypeError or ChatTemplateError."""
        if not isinstance(values, dict):
            raise TypeError(f"must be a JSON object, got {type(values).__name__}")
        pieces = list(self._chat(values) if "messages" in values else self._instruction(values))
        ids: list[int] = []
        learned: list[bool] = []
        for text, counts in pieces:
            piece = self.encode(text) if text else []
            ids += piece
            learned += [counts] * len(piece)
        if not any(learned[1:]):
            raise ValueError("contains nothing to learn")
        if len(ids) > self.max_tokens:
            raise ValueError(f"has {len(ids)} tokens; at most {self.max_tokens} are allowed")
        return Example(tuple(ids), (False, *learned[1:]))

    def _instruction(self, values: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
        """Yields pieces of text, and whether each is learned."""
        _check_keys(values, {"prompt", "completion"})
        yield _text(values, "prompt"), False
        yield _text(values, "completion") + self.end_of_text, True

    def _chat(self, values: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
        _check_keys(values, {"messages"})
        messages, written = _messages(values["messages"]), ""
        for count, message in enumerate(messages):
            if message["role"] == "assistant":
                before, after = self._rendered(messages[:count], reply=True), self._rendered(messages[: count + 1], reply=False)
                if not (before.startswith(written) and after.startswith(before)):
                    raise ValueError("the chat template changes a turn when another one follows; such chats cannot be learned")
                yield before[len(written) :], False
                yield after[len(before) :], True
                written = after

    def _rendered(self, messages: Sequence[Message], *, reply: bool) -> str:
        return render(self.template, messages, end_of_text=self.end_of_text, reply=reply)


def _check_keys(values: Mapping[str, Any], allowed: set[str]) -> None:
    if unknown := sorted(values.keys() - allowed):
        raise ValueError(f"{unknown[0]}: unknown key; the keys are {', '.join(sorted(allowed))}")


def _text(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key}: got {value!r}, must be a non-empty text")
    return value


def _messages(value: Any) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise ValueError("messages: must be a non-empty list")
    for position, message in enumerate(value):
        if not isinstance(message, dict) or message.keys() != {"role", "content"}:
            raise ValueError(f"messages[{position}]: must be an object of role and content")
        if message["role"] not in ROLES:
            raise ValueError(f"messages[{position}].role: got {message['role']!r}, must be one of {', '.join(ROLES)}")
        if not isinstance(message["content"], str):
            raise TypeError(f"messages[{position}].content: got {message['content']!r}, must be a text")
    return value
