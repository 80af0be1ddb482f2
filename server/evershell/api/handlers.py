"""The handlers of the server: one for each method, composed of the interceptors and the servicer.

grpc.aio would build its own chain of interceptors again for each call. This chain is composed once,
when the server is made.
"""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias, cast

import grpc

from evershell.api import call as calls
from evershell.api.call import Call, Context
from evershell.api.interceptors.interceptor import Handler, Interceptor, Method
from evershell.api.status import ENVELOPE, ErrorForm

# Quoted, because the class has type parameters only in the type stubs, and not at run time.
MethodHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_Behavior = Callable[[Any, Context], Any]


@dataclass(frozen=True, slots=True)
class Service:
    """An additional service of the server, or some methods of a service."""

    # The generated function `add_…Servicer_to_server`.
    add: Callable[[Any, grpc.aio.Server], None]
    servicer: object
    # The full name of the service; only needed with `form`.
    name: str = ""
    # The form of the service's errors; None for ENVELOPE.
    form: ErrorForm | None = None


class Handlers(grpc.GenericRpcHandler):
    """Finds the handler of a method by its path."""

    def __init__(
        self,
        methods: "Mapping[str, MethodHandler]",
        interceptors: Sequence[Interceptor],
        forms: Mapping[str, ErrorForm] = MappingProxyType({}),
    ) -> None:
        """Composes a handler for each method. `methods` maps the path of each method to the method.

        The first of `interceptors` is the outermost. A method that takes a stream of messages is
        not supported. `forms` maps the names of services to the forms of their errors. The errors
        of all other services have the form ENVELOPE.
        """
        self._by_path = {
            path: _composed(path, method, interceptors, forms) for path, method in methods.items()
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "MethodHandler | None":
        """The handler; None for a method that does not exist."""
        return self._by_path.get(handler_call_details.method)


class Methods(dict[str, "MethodHandler"]):
    """Stands in for a server, and collects the methods of servicers by path.

    The generated functions `add_…Servicer_to_server` register with it.
    """

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Ignores the handlers: `add_registered_method_handlers` gets the same methods."""

    def add_registered_method_handlers(
        self, service: str, methods: "Mapping[str, MethodHandler]"
    ) -> None:
        """Adds the methods that the servicer has. For all others, gRPC answers UNIMPLEMENTED."""
        self.update(
            {
                f"/{service}/{name}": method
                for name, method in methods.items()
                if not _behavior(method).__module__.endswith("_pb2_grpc")
            }
        )


def _behavior(registered: "MethodHandler") -> _Behavior:
    streams = registered.response_streaming
    return cast(_Behavior, registered.unary_stream if streams else registered.unary_unary)


def _composed(
    path: str,
    registered: "MethodHandler",
    interceptors: Sequence[Interceptor],
    forms: Mapping[str, ErrorForm],
) -> "MethodHandler":
    """The method as gRPC calls it.

    For a unary method, gRPC reads the request before it calls the handler, so a caller without a
    credential could make a worker buffer the request. Every method is therefore registered as a
    method that takes a stream, and the interceptor `Reading` reads the message once the other
    interceptors have admitted the call.
    """
    _, service, name = path.split("/")
    assert registered.request_deserializer is not None, "the generated code sets it"
    is_stream = bool(registered.response_streaming)
    form = forms.get(service, ENVELOPE)
    method = Method(service, name, registered.request_deserializer, is_stream, form)
    serialize = registered.response_serializer
    assert serialize is not None, "the generated code sets it"
    behavior = _behavior(registered)
    handler = _streaming(behavior) if is_stream else _unary(behavior)
    for interceptor in reversed(interceptors):
        handler = interceptor.wrap(method, handler)

    async def answer(messages: object, context: Context) -> Any:
        try:
            return await handler(calls.begin(context))
        except grpc.aio.AbortError as error:
            # gRPC stores the error in the call. If the traceback of the error referred to the call,
            # the call and its objects would stay in memory until the next garbage collection.
            del messages, context
            error.__context__ = None
            raise error.with_traceback(None)  # noqa: B904 - must have no context

    if is_stream:
        # A stream may send serialized messages, which watchers share.
        return grpc.stream_stream_rpc_method_handler(
            answer,
            response_serializer=lambda reply: reply if type(reply) is bytes else serialize(reply),
        )
    return grpc.stream_unary_rpc_method_handler(answer, response_serializer=serialize)


def _unary(behavior: _Behavior) -> Handler:
    async def respond(call: Call) -> Any:
        return await behavior(call.request, call.context)

    return respond


def _streaming(behavior: _Behavior) -> Handler:
    """A handler that writes the messages itself, so that interceptors surround the whole stream."""

    async def stream(call: Call) -> None:
        context = call.context
        produced = behavior(call.request, context)
        if not hasattr(produced, "__aiter__"):
            await produced
            return
        # Closes the generator at once. A watcher that has stopped reading would otherwise keep its
        # subscription.
        async with aclosing(cast(AsyncGenerator[Any, None], produced)):
            async for message in produced:
                await context.write(message)
                # Frees the memory while the stream is quiet.
                del message
                call.has_streamed = True

    return stream
