"""TokenService: tokenization in the gateway, without an engine."""

import asyncio

from neox_serve.gateway.requests import validation
from neox_serve.gateway.requests.served import Served
from neox_serve.gateway.server.calls import Call
from neox_serve.model.tokenizer import MAX_CHARACTERS_ON_THE_LOOP, Tokenizer
from neox_serve.v1 import token_service_pb2


class Tokens:
    """Implements the service."""

    def __init__(self, *, served: Served, tokenizer: Tokenizer) -> None:
        self._served = served
        self._tokenizer = tokenizer

    async def tokenize(self, call: Call, message: token_service_pb2.TokenizeRequest) -> token_service_pb2.TokenizeResponse:
        """Converts texts to token ids. Raises ServeError."""
        validation.check_tokenize(message, self._served)
        results = [await self._tokenized(text, message.include_offsets) for text in message.texts]
        call.accounting.tokens.prompt = sum(len(result.token_ids) for result in results)
        return token_service_pb2.TokenizeResponse(request_id=call.request_id, model=self._served.model, results=results)

    async def detokenize(self, call: Call, message: token_service_pb2.DetokenizeRequest) -> token_service_pb2.DetokenizeResponse:
        """Converts token ids to texts. Raises ServeError."""
        validation.check_detokenize(message, self._served)
        call.accounting.tokens.prompt = sum(len(sequence.ids) for sequence in message.sequences)
        if call.accounting.tokens.prompt <= MAX_CHARACTERS_ON_THE_LOOP:
            texts = self._texts(message)
        else:
            texts = await asyncio.to_thread(self._texts, message)
        return token_service_pb2.DetokenizeResponse(request_id=call.request_id, model=self._served.model, texts=texts)

    async def _tokenized(self, text: str, include_offsets: bool) -> token_service_pb2.TokenizedText:
        if len(text) <= MAX_CHARACTERS_ON_THE_LOOP:
            return self._tokenized_now(text, include_offsets)
        return await asyncio.to_thread(self._tokenized_now, text, include_offsets)

    def _tokenized_now(self, text: str, include_offsets: bool) -> token_service_pb2.TokenizedText:
        token_ids, offsets = self._tokenizer.encode_with_offsets(text)
        positions = [token_service_pb2.TokenOffset(start=start, end=end) for start, end in offsets] if include_offsets else ()
        return token_service_pb2.TokenizedText(token_ids=token_ids, offsets=positions)

    def _texts(self, message: token_service_pb2.DetokenizeRequest) -> list[str]:
        return [self._tokenizer.decode(sequence.ids) for sequence in message.sequences]
