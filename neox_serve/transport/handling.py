"""Runs the handler of a call, which may be of any of gRPC's four kinds, and ends the call with a status."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import structlog

from neox_serve.transport.call import AbortError, Requests, ServerCall
from neox_serve.transport.framing import StatusError

_log = structlog.get_logger(__name__)


async def handle(call: ServerCall, requests: Requests, handler: "grpc.RpcMethodHandler[Any, Any]") -> None:
    """Runs the handler and ends the call. Raises nothing but CancelledError."""
    call.serialize = handler.response_serializer
    try:
        await _answer(call, requests, handler)
        call.end(grpc.StatusCode.OK)
    except AbortError:
        return
    except StatusError as error:
        call.end(error.code, error.details)
    except asyncio.CancelledError:
        expired = call.time_remaining() == 0.0
        call.end(grpc.StatusCode.DEADLINE_EXCEEDED if expired else grpc.StatusCode.CANCELLED, "")
        raise
    except Exception as error:  # noqa: BLE001 - the process boundary: anything that a handler raises becomes a status
        _log.exception("handler_failed", method=call.path)
        call.set_trailing_metadata(())  # the metadata itself may be what failed
        call.end(grpc.StatusCode.UNKNOWN, type(error).__name__)


async def _answer(call: ServerCall, requests: Requests, handler: "grpc.RpcMethodHandler[Any, Any]") -> None:
    method = _method(handler)
    request = _stream_of(requests, handler) if handler.request_streaming else _read(await requests.only(), handler)
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
    """Returns the deserialized message. Raises StatusError if it cannot be parsed."""
    if handler.request_deserializer is None:
        return message
    try:
        return handler.request_deserializer(message)
    except Exception as error:
        raise StatusError(grpc.StatusCode.INTERNAL, "the request message cannot be parsed") from error
