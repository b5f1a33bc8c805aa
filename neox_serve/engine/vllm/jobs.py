"""The state of one generation request in the vLLM engine: outputs go in as the step brings them, one delta comes out at its end."""

from collections.abc import Hashable
from dataclasses import dataclass, field

from vllm.outputs import CompletionOutput, RequestOutput

from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.types import Delta, DeltaSink, Finish, FinishReason, GenerationRequest, PromptFacts, SequenceDelta
from neox_serve.engine import structured_outputs
from neox_serve.engine.detokenizer import Piece, TextStream, TokenTable
from neox_serve.engine.vllm.requests import positions


@dataclass(slots=True)
class Sequence:
    """One of a request's n sequences. vllm_id: its request in vLLM; live: whether vLLM still works on it."""

    index: int
    vllm_id: str
    stream: TextStream
    live: bool = True
    tokens: int = 0


@dataclass(slots=True)
class Job:
    """A request and what the current step has brought for it. prompt: known once the first sequence has its first token."""

    key: Hashable
    request: GenerationRequest
    sink: DeltaSink
    table: TokenTable
    sequences: list[Sequence] = field(default_factory=list)
    news: list[SequenceDelta] = field(default_factory=list)
    prompt: PromptFacts | None = None
    started: bool = False
    failure: ServeError | None = None
    closed: bool = False

    def add_sequence(self, vllm_id: str) -> Sequence:
        """One more of the n sequences."""
        stream = TextStream(self.table.text_bytes, self.request.stopping, self.request.prompt_token_ids)
        sequence = Sequence(len(self.sequences), vllm_id, stream)
        self.sequences.append(sequence)
        return sequence

    @property
    def live_ids(self) -> list[str]:
        """What vLLM must be told to stop if the request ends now."""
        return [sequence.vllm_id for sequence in self.sequences if sequence.live]

    def receive(self, sequence: Sequence, output: RequestOutput) -> str | None:
        """Takes one output. Returns the id of a vLLM request that must be stopped, because a stop sequence matched, or None.

        vLLM goes on with a sequence that a stop sequence ended until it hears of that; what comes of it in between is not told.
        """
        if not sequence.live:
            return None
        if sequence.index == 0 and self.prompt is None:
            self.prompt = self._prompt_facts(output)
        completion: CompletionOutput = output.outputs[0]
        if completion.finish_reason in {"error", "abort"}:
            self.failure = self._failed(completion.finish_reason)
        if completion.finish_reason is not None:
            sequence.live = False
        if self.failure is None:
            return self._extend(sequence, completion)
        return None

    def take_delta(self) -> Delta | None:
        """What is to be told at the end of a step. Nothing before the prompt's facts are known, since these come in the first delta."""
        if self.failure is not None:
            return Delta(self.key, end=True, failure=self.failure)
        if self.prompt is None or not self.news:
            return None
        prompt = None if self.started else self.prompt
        self.started = True
        news, self.news = tuple(self.news), []
        return Delta(self.key, news, prompt, end=not any(sequence.live for sequence in self.sequences))

    def _extend(self, sequence: Sequence, completion: CompletionOutput) -> str | None:
        token_ids = tuple(completion.token_ids)
        sequence.tokens += len(token_ids)
        ended = completion.finish_reason == "stop" and not self.request.stopping.include_stop_in_output
        piece = sequence.stream.push(token_ids, hide_last=ended)
        finish = _finish(piece, completion)
        text = piece.text if finish is None or piece.stop is not None else piece.text + sequence.stream.finish()
        logprobs = positions(completion.logprobs, self.request.logprobs or 0, self.table.display)[: piece.tokens]
        self.news.append(SequenceDelta(sequence.index, text, token_ids[: piece.tokens], logprobs, finish))
        if piece.stop is None or not sequence.live:
            return None
        sequence.live = False
        return sequence.vllm_id

    def _prompt_facts(self, output: RequestOutput) -> PromptFacts:
        entries = positions(output.prompt_logprobs, self.request.prompt_logprobs or 0, self.table.display)
        return PromptFacts(output.num_cached_tokens or 0, entries)

    def _failed(self, finish_reason: str) -> ServeError:
        """A structured-output sequence that fails before its first token is one whose grammar the engine core could not build."""
        if (
            finish_reason == "error"
            and self.request.structured_output is not None
            and not any(sequence.tokens for sequence in self.sequences)
        ):
            return structured_outputs.refusal(
                self.request.structured_output, "cannot be followed: the engine could not build a grammar from it"
            )
        return ServeError(Reason.ENGINE_FAILED, f"vLLM ended the request with {finish_reason!r}")


def _finish(piece: Piece, completion: CompletionOutput) -> Finish | None:
    if piece.stop is not None:
        return Finish(FinishReason.STOP, piece.stop)
    if completion.finish_reason is None:
        return None
    reason = FinishReason.LENGTH if completion.finish_reason == "length" else FinishReason.STOP
    return Finish(reason, completion.stop_reason if reason is FinishReason.STOP else None)
