"""Admits a call to the agent: verifies its token, then parses its request."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, cast

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from evershell.agents.token_verifier import InvalidTokenError, TokenVerifier

Context = grpc.aio.ServicerContext[Any, Any]
# Quoted: grpcio's class is generic only in its type stubs.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

_UNPARSABLE = "The request cannot be parsed as a message of this method's request type."


class Admission(grpc.aio.ServerInterceptor):
    """Refuses calls without a valid token and requests that cannot be parsed.

    Parses the request itself. gRPC would parse it before the token is verified, and would answer
    with the exception's text.
    """

    def __init__(self, verifier: TokenVerifier) -> None:
        self._verifier = verifier

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["Handler | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """Wraps the method's handler. All methods of the agent are unary."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        assert handler.unary_unary is not None and handler.request_deserializer is not None
        parse = handler.request_deserializer
        serve = cast(Callable[[Any, Context], Awaitable[Any]], handler.unary_unary)

        async def admitted(request: Any, context: Context) -> Any:
            metadata = dict(context.invocation_metadata() or ())
            try:
                self._verifier.verify(str(metadata.get("authorization", "")))
            except InvalidTokenError as error:
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
            try:
                message = parse(request)
            except DecodeError:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, _UNPARSABLE)
            return await serve(message, context)

        return grpc.unary_unary_rpc_method_handler(
            admitted, response_serializer=handler.response_serializer
        )
