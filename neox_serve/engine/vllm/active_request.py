"""The state of one generation request in the vLLM engine: it takes vLLM's outputs during a step and gives one delta at the step's end."""

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
    """One of the n sequences of a request."""

    index: int
    vllm_id: str
    """Id of the vLLM request that generates the sequence."""
    stream: TextStream
    live: bool = True
    """Whether vLLM still generates the sequence."""
    tokens: int = 0
    """Number of tokens generated so far."""


@dataclass(slots=True)
class ActiveRequest:
    """A request that runs, and the outputs of the current step."""

    key: Hashable
    request: GenerationRequest
    sink: DeltaSink
    table: TokenTable
    sequences: list[Sequence] = field(default_factory=list)
    step_outputs: list[SequenceDelta] = field(default_factory=list)
    prompt: PromptFacts | None = None
    """Known once the first sequence has its first token."""
    started: bool = False
    """Whether a delta has been taken."""
    failure: ServeError | None = None
    closed: bool = False
    """Whether the request has ended or was aborted. Later outputs are ignored."""

    def add_sequence(self, vllm_id: str) -> Sequence:
        """Adds the next of the n sequences."""
        stream = TextStream(self.table.text_bytes, self.request.stopping, self.request.prompt_token_ids)
        sequence = Sequence(len(self.sequences), vllm_id, stream)
        self.sequences.append(sequence)
        return sequence

    @property
    def live_ids(self) -> list[str]:
        """The vLLM requests to abort if this request ends now."""
        return [sequence.vllm_id for sequence in self.sequences if sequence.live]

    def receive(self, sequence: Sequence, output: RequestOutput) -> str | None:
        """Takes one output. Returns the id of a vLLM request to abort because a stop sequence matched, otherwise None.

        vLLM continues a sequence after a stop sequence until the abort reaches it. Outputs in between are ignored.
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
        """Returns the delta of the step, or None if there is nothing to send yet.

        The first delta carries the prompt's facts, so there is none before they are known.
        """
        if self.failure is not None:
            return Delta(self.key, end=True, failure=self.failure)
        if self.prompt is None or not self.step_outputs:
            return None
        prompt = None if self.started else self.prompt
        self.started = True
        outputs, self.step_outputs = tuple(self.step_outputs), []
        return Delta(self.key, outputs, prompt, end=not any(sequence.live for sequence in self.sequences))

    def _extend(self, sequence: Sequence, completion: CompletionOutput) -> str | None:
        token_ids = tuple(completion.token_ids)
        sequence.tokens += len(token_ids)
        ended = completion.finish_reason == "stop" and not self.request.stopping.include_stop_in_output
        piece = sequence.stream.push(token_ids, hide_last=ended)
        finish = _finish(piece, completion)
        text = piece.text if finish is None or piece.stop is not None else piece.text + sequence.stream.finish()
        logprobs = positions(completion.logprobs, self.request.logprobs or 0, self.table.display)[: piece.tokens]
        self.step_outputs.append(SequenceDelta(sequence.index, text, token_ids[: piece.tokens], logprobs, finish))
        if piece.stop is None or not sequence.live:
            return None
        sequence.live = False
        return sequence.vllm_id

    def _prompt_facts(self, output: RequestOutput) -> PromptFacts:
        entries = positions(output.prompt_logprobs, self.request.prompt_logprobs or 0, self.table.display)
        return PromptFacts(output.num_cached_tokens or 0, entries)

    def _failed(self, finish_reason: str) -> ServeError:
        """Returns the error of a request that vLLM ended.

        A structured output that fails before its first token is one for which the engine core could not build a grammar.
        """
        structured_output = self.request.structured_output
        if finish_reason == "error" and structured_output is not None and not any(sequence.tokens for sequence in self.sequences):
            return structured_outputs.refusal(structured_output, "cannot be followed: the engine could not build a grammar from it")
        return ServeError(Reason.ENGINE_FAILED, f"vLLM ended the request with {finish_reason!r}")


def _finish(piece: Piece, completion: CompletionOutput) -> Finish | None:
    if piece.stop is not None:
        return Finish(FinishReason.STOP, piece.stop)
    if completion.finish_reason is None:
        return None
    reason = FinishReason.LENGTH if completion.finish_reason == "length" else FinishReason.STOP
    return Finish(reason, completion.stop_reason if reason is FinishReason.STOP else None)
