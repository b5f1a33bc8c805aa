"""Renders chats to text with the chat template of the requested adapter or, if it has none, of the model."""

import asyncio
from collections.abc import Sequence

from neox_serve.core.errors import FieldViolation, Reason
from neox_serve.gateway.requests.served import Served
from neox_serve.gateway.requests.violations import refusal
from neox_serve.model.chat import ChatTemplateError, read_template, render
from neox_serve.model.tokenizer import Tokenizer
from neox_serve.v1 import generation_pb2


class Chats:
    """Renders chats. The template of an adapter is read once, because adapters do not change."""

    def __init__(self, served: Served, tokenizer: Tokenizer) -> None:
        self._served = served
        self._model_template = tokenizer.chat_template
        self._end_of_text = tokenizer.decode([served.end_of_text_id])
        self._templates: dict[str, str | None] = {}

    async def as_texts(self, prompts: Sequence[generation_pb2.Prompt], path: str, adapter: str) -> Sequence[generation_pb2.Prompt]:
        """Returns the prompts with every chat replaced by text. `path` is as in `fit_prompts`. Raises INVALID_ARGUMENT."""
        if not any(prompt.HasField("chat") for prompt in prompts):
            return prompts
        return await asyncio.to_thread(self._as_texts, prompts, path, adapter)

    def _as_texts(self, prompts: Sequence[generation_pb2.Prompt], path: str, adapter: str) -> list[generation_pb2.Prompt]:
        return [
            self._text(prompt, f"{path.format(index)}.chat", adapter) if prompt.HasField("chat") else prompt
            for index, prompt in enumerate(prompts)
        ]

    def _text(self, prompt: generation_pb2.Prompt, field: str, adapter: str) -> generation_pb2.Prompt:
        template = self._template(adapter)
        if template is None:
            which = f"neither adapter {adapter!r} nor the model has" if adapter else "the model does not have"
            raise refusal(Reason.INVALID_ARGUMENT, [FieldViolation(field, f"{which} a chat template; send the prompt as text")])
        messages = [{"role": message.role, "content": message.content} for message in prompt.chat.messages]
        try:
            return generation_pb2.Prompt(text=render(template, messages, end_of_text=self._end_of_text))
        except ChatTemplateError as error:
            raise refusal(Reason.INVALID_ARGUMENT, [FieldViolation(field, f"the chat template rejects this chat: {error}")]) from error

    def _template(self, adapter: str) -> str | None:
        """Returns the template, or None if there is none. Raises INVALID_ARGUMENT if that of the adapter cannot be read."""
        if not adapter:
            return self._model_template
        if adapter not in self._templates:
            folder = self._served.adapter_folder(adapter)
            try:
                self._templates[adapter] = (read_template(folder) if folder else None) or self._model_template
            except (OSError, ValueError) as error:
                raise refusal(Reason.INVALID_ARGUMENT, [FieldViolation("adapter", f"its chat template cannot be read: {error}")]) from error
        return self._templates[adapter]
