"""The base class of the interceptors."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from evershell.api.call import Call
from evershell.api.status import ENVELOPE, ErrorForm

# Serves a call: returns its response, or writes a stream of responses and returns None.
Handler = Callable[[Call], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Method:
    """A method of a service."""

    # The full name of the service: `package.Service`.
    service: str
    name: str
    # Parses a request. Raises DecodeError.
    parse: Callable[[bytes], Any]
    # Whether the method responds with a stream.
    is_stream: bool
    form: ErrorForm = ENVELOPE

    @property
    def path(self) -> str:
        """`/package.Service/Method`."""
        return f"/{self.service}/{self.name}"


class Interceptor(ABC):
    """Does something before or after every call."""

    @abstractmethod
    def wrap(self, method: Method, proceed: Handler) -> Handler:
        """Returns a handler that does the interceptor's work and calls `proceed`, the next handler.

        The server calls `wrap` once for each method when the server is made, so `wrap` decides
        whatever depends only on the method. For a method that does not need the interceptor,
        returns `proceed` itself.
        """
