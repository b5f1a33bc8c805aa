"""Runs a call's handler, of any of gRPC's four kinds, and gives the call its status at the end."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import structlog

from neox_serve.transport.call import AbortError, Requests, ServerCall
from neox_serve.transport.framing import StatusError

_log = structlog.get_logger(__name__)


async def handle(call: ServerCall, requests: Requests, handler: "grpc.RpcMethodHandler[Any, Any]") -> None:
    """From the first message to the status. Raises CancelledError alone."""
    call.serialize = handler.response_serializer
    try:
        await _answer(call, requests, handler)
        call.end(grpc.StatusCode.OK)
    except AbortError:
        return
    except StatusError as error:
        call.end(error.code, error.details)
    except asyncio.CancelledError:
        late = call.time_remaining() == 0.0
        call.end(grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED, "")
        raise
    except Exception as error:  # noqa: BLE001 - the process boundary: whatever a handler raises becomes a status
        _log.exception("fault in a handler", method=call.path)
        call.set_trailing_metadata(())  # which may be the fault
        call.end(grpc.StatusCode.UNKNOWN, type(error).__name__)


async def _answer(call: ServerCall, requests: Requests, handler: "grpc.RpcMethodHandler[Any, Any]") -> None:
    method = _method(handler)
    request = _stream_of(requests, handler) if handler.request_streaming else _read(await requests.one(), handler)
    answer = method(request, call)
    if not handler.response_streaming:
        call.put(await answer)
    elif hasattr(answer, "__aiter__"):
        async for message in answer:
            await call.write(message)
    else:
        await answer


def _method(handler: "grpc.RpcMethodHandler[Any, Any]") -> Callable[[Any, Any], Any]:
    if handler.request_streaming:
        return handler.stream_stream if handler.response_streaming else handler.stream_unary  # type: ignore[return-value]
    return handler.unary_stream if handler.response_streaming else handler.unary_unary  # type: ignore[return-value]


async def _stream_of(requests: Requests, handler: "grpc.RpcMethodHandler[Any, Any]") -> AsyncIterator[Any]:
    async for message in requests:
        yield _read(message, handler)


def _read(message: bytes, handler: "grpc.RpcMethodHandler[Any, Any]") -> Any:
    """Raises StatusError where the message is not of the handler's type."""
    if handler.request_deserializer is None:
        return message
    try:
        return handler.request_deserializer(message)
    except Exception as error:
        raise StatusError(grpc.StatusCode.INTERNAL, "the request message cannot be read") from error
