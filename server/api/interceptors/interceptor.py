"""The base class of the interceptors."""

from abc import abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeAlias, cast

import grpc

from server.api import call as calls

Context = grpc.aio.ServicerContext[Any, Any]
Details = grpc.HandlerCallDetails
# Runs the rest of the call and returns its response.
Proceed = Callable[[], Awaitable[Any]]
# The stubs declare type parameters that the class of grpcio does not have at run time.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Continuation = Callable[[Details], Awaitable["Handler | None"]]


class Interceptor(grpc.aio.ServerInterceptor):
    """Wraps every call, unary or streaming.

    `Reading` is the innermost interceptor and takes the request as a stream of bytes, so every
    handler here takes a stream of requests.
    """

    @abstractmethod
    async def around(self, details: Details, context: Context, proceed: Proceed) -> Any:
        """Awaits `proceed` and returns its result."""

    async def around_stream(self, details: Details, context: Context, proceed: Proceed) -> Any:
        """Like `around`, for a stream of responses. Override it only where it differs."""
        return await self.around(details, context, proceed)

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: Details
    ) -> "Handler | None":
        """Wraps the method's handler."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_deserializer is not None:
            # Reflection takes a stream of requests, so `Reading` has not replaced its handler.
            return handler
        if handler.stream_stream is not None:
            return self._wrap_stream(handler, handler_call_details)
        behavior = cast(Callable[[Any, Context], Awaitable[Any]], handler.stream_unary)

        async def unary(messages: Any, context: Context) -> Any:
            return await self.around(
                handler_call_details, context, lambda: behavior(messages, context)
            )

        return grpc.stream_unary_rpc_method_handler(
            unary, response_serializer=handler.response_serializer
        )

    def _wrap_stream(self, handler: "Handler", details: Details) -> "Handler":
        """Writes the messages of the stream itself, so that `around` wraps all of it."""
        behavior = cast(Callable[[Any, Context], Any], handler.stream_stream)

        async def stream(messages: Any, context: Context) -> None:
            async def run() -> None:
                produced = behavior(messages, context)
                if not hasattr(produced, "__aiter__"):
                    await produced
                    return
                # Closes the generator at once. A watcher that has stopped reading would otherwise
                # keep its subscription.
                async with aclosing(cast(AsyncGenerator[Any, None], produced)):
                    async for message in produced:
                        await context.write(message)
                        calls.current().has_streamed = True

            await self.around_stream(details, context, run)

        return grpc.stream_stream_rpc_method_handler(
            stream, response_serializer=handler.response_serializer
        )
