"""Translates all exceptions that vLLM can raise. A test fails if vLLM has an exception that is not listed here."""

from vllm import exceptions as vllm_exceptions
from vllm.v1.engine.async_llm import InputStreamError
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from neox_serve.core.errors import Reason, ServeError

REASONS: tuple[tuple[type[BaseException], Reason], ...] = (
    (EngineDeadError, Reason.REPLICA_LOST),
    (vllm_exceptions.LoRAAdapterNotFoundError, Reason.UNKNOWN_ADAPTER),
    (vllm_exceptions.VLLMNotFoundError, Reason.INVALID_ARGUMENT),
    (vllm_exceptions.VLLMValidationError, Reason.INVALID_ARGUMENT),
    (vllm_exceptions.VLLMUnprocessableEntityError, Reason.INVALID_ARGUMENT),
    (vllm_exceptions.VLLMClientError, Reason.INVALID_ARGUMENT),
    (vllm_exceptions.QueueOverflowError, Reason.OVERLOADED),
    (vllm_exceptions.MaxQueuedTokensError, Reason.OVERLOADED),
    (vllm_exceptions.ProfilerAlreadyActiveError, Reason.ENGINE_FAILED),
    (vllm_exceptions.GracefulHTTPError, Reason.OVERLOADED),
    (vllm_exceptions.RetryableRequestError, Reason.ENGINE_FAILED),
    (vllm_exceptions.GenerationError, Reason.ENGINE_FAILED),
    (EngineGenerateError, Reason.ENGINE_FAILED),
    (InputStreamError, Reason.ENGINE_FAILED),
    (vllm_exceptions.VLLMServerError, Reason.ENGINE_FAILED),
    (vllm_exceptions.VLLMError, Reason.ENGINE_FAILED),
    # The input processor still raises bare ValueErrors and TypeErrors about parameters.
    (ValueError, Reason.INVALID_ARGUMENT),
    (TypeError, Reason.INVALID_ARGUMENT),
)
"""The first class that an exception is an instance of decides, so classes stand before their base classes."""
_RETRY_AFTER_S = 1.0


def translate(error: BaseException) -> ServeError:
    """Returns the ServeError for an exception of vLLM. Unknown exceptions become ENGINE_FAILED, whose message is not sent to clients."""
    reason = next((reason for kind, reason in REASONS if isinstance(error, kind)), Reason.ENGINE_FAILED)
    retry_after_s = _RETRY_AFTER_S if reason is Reason.OVERLOADED else None
    return ServeError(reason, str(error) or type(error).__name__, retry_after_s=retry_after_s)
