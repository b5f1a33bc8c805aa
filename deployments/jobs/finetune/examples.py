"""Examples of a fine-tuning job: lines of JSON to token ids, of which some are to be learnt.

{"prompt": text, "completion": text}: the completion is learnt, and the end of text after it. {"messages": [{"role": ..., "content": ...},
...]}: what the assistant says is learnt, with what the chat template puts after it. Prompts and what follows them are tokenized each for
itself, as they are when the adapter is served.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deployments.jobs.bulk.rows import BadRow
from deployments.jobs.files.storage import reading
from neox_serve.model.chat import ROLES, ChatTemplateError, Message, render

Encode = Callable[[str], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Example:
    """token_ids: all of it. learnt: whether each of them is to be learnt; the first never is, since nothing is before it."""

    token_ids: tuple[int, ...]
    learnt: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Reader:
    """Makes examples of rows. end_of_text: as text. max_tokens: that an example may have."""

    encode: Encode
    template: str
    end_of_text: str
    max_tokens: int

    def read(self, file: str) -> Iterator[Example | BadRow]:
        """The rows of a file of JSON lines, blank ones left out. Raises OSError."""
        with reading(file) as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    try:
                        yield self.example(json.loads(line))
                    except (ValueError, TypeError, RecursionError, ChatTemplateError) as error:
                        yield BadRow(number, str(error), line.decode("utf-8", "replace").rstrip("\r\n"))

    def example(self, values: Any) -> Example:
        """Of one row. Raises ValueError, TypeError, ChatTemplateError."""
        if not isinstance(values, dict):
            raise TypeError(f"must be a JSON object, got {type(values).__name__}")
        pieces = list(self._chat(values) if "messages" in values else self._instruction(values))
        ids: list[int] = []
        learnt: list[bool] = []
        for text, counts in pieces:
            piece = self.encode(text) if text else []
            ids += piece
            learnt += [counts] * len(piece)
        if not any(learnt[1:]):
            raise ValueError("has nothing to learn")
        if len(ids) > self.max_tokens:
            raise ValueError(f"has {len(ids)} tokens, may have {self.max_tokens}")
        return Example(tuple(ids), (False, *learnt[1:]))

    def _instruction(self, values: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
        """Pieces of text, and whether they are learnt."""
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
                    raise ValueError("the chat template writes a turn anew when another follows; such chats cannot be learnt")
                yield before[len(written) :], False
                yield after[len(before) :], True
                written = after

    def _rendered(self, messages: Sequence[Message], *, reply: bool) -> str:
        return render(self.template, messages, end_of_text=self.end_of_text, reply=reply)


def _check_keys(values: Mapping[str, Any], allowed: set[str]) -> None:
    if unknown := sorted(values.keys() - allowed):
        raise ValueError(f"{unknown[0]}: is none of {', '.join(sorted(allowed))}")


def _text(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key}: got {value!r}, must be a text that is not empty")
    return value


def _messages(value: Any) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise ValueError("messages: must be a list that is not empty")
    for position, message in enumerate(value):
        if not isinstance(message, dict) or message.keys() != {"role", "content"}:
            raise ValueError(f"messages[{position}]: must be an object of role and content")
        if message["role"] not in ROLES:
            raise ValueError(f"messages[{position}].role: got {message['role']!r}, must be one of {', '.join(ROLES)}")
        if not isinstance(message["content"], str):
            raise TypeError(f"messages[{position}].content: got {message['content']!r}, must be a text")
    return value
