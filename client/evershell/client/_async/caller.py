"""How the client makes a call and repeats it, follows a stream, and fetches a list."""

import logging
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from evershell.client._calls import Call, Seconds, seconds
from evershell.client._calls import call as make_call
from evershell.client._deprecations import warn_of_fields, warn_of_rpc
from evershell.client._options import AsyncCredential, Options, find_credential
from evershell.client._repeats import Attempts, Watch, WatchLimits, log_failure
from evershell.client._transport import (
    IDLE_SECONDS,
    AsyncTransport,
    Headers,
    async_token_of,
    raise_failure,
)
from evershell.client.answers import Answer, OnAnswer, Page, metadata_of, request_id_of
from evershell.client.endpoint import channel_credentials, find_endpoint
from evershell.client.errors import CallError, UnavailableError

T = TypeVar("T")

_log = logging.getLogger("evershell.client")


class AsyncPages(Generic[T]):
    """A list that the service returns in pages. Iterate over all items, or over `pages()`.

    Each page is fetched when it is needed, so the iteration may raise CallError.
    """

    def __init__(self, fetch: Callable[[str], Awaitable[Page[T]]], page_token: str) -> None:
        self._fetch = fetch
        self._page_token = page_token

    async def __aiter__(self) -> AsyncIterator[T]:
        async for page in self.pages():
            for item in page.items:
                yield item

    async def pages(self) -> AsyncIterator[Page[T]]:
        """Yields the pages, for example to store `next_page_token` and continue later."""
        token: str | None = self._page_token
        while token is not None:
            page = await self._fetch(token)
            yield page
            token = page.next_page_token


class AsyncCaller:
    """Makes the calls of the client."""

    def __init__(
        self,
        url: str | None = None,
        credential: AsyncCredential | None = None,
        *,
        timeout: Seconds = 10.0,
        timeouts: Mapping[str, Seconds] | None = None,
        max_retries: int = 3,
        metadata: Mapping[str, str] | None = None,
        on_answer: OnAnswer | None = None,
        ca_file: str | Path | None = None,
        cert_file: str | Path | None = None,
        key_file: str | Path | None = None,
        interceptors: Sequence[Any] = (),
    ) -> None:
        self._options = Options().changed(
            timeout, timeouts, max_retries, metadata=metadata, on_answer=on_answer
        )
        self._credential = find_credential(credential)
        self._endpoint = find_endpoint(url)
        tls = channel_credentials(self._endpoint, ca_file, cert_file, key_file)
        self._transport = AsyncTransport(self._endpoint, tls, interceptors)
        self._monotonic: Callable[[], float] = time.monotonic
        self._sleep: Callable[[float], Coroutine[Any, Any, None]] = AsyncTransport.sleep
        self._idle_seconds = IDLE_SECONDS

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.url}>"

    @property
    def url(self) -> str:
        return self._endpoint.url

    def with_options(
        self,
        *,
        credential: AsyncCredential | None = None,
        timeout: Seconds | None = None,
        timeouts: Mapping[str, Seconds] | None = None,
        max_retries: int | None = None,
        traceparent: str | None = None,
        metadata: Mapping[str, str] | None = None,
        on_answer: OnAnswer | None = None,
    ) -> Self:
        """A client with other options. It shares the connection of this client, and closes with it.

        Args:
            credential: The credential of its calls.
            timeout: The limit of each call including its retries, in seconds or as a timedelta.
                It also replaces the `timeouts` of this client.
            timeouts: Like `timeout`, for single methods, by name: `{"CancelTask": 2}`.
            max_retries: How often a call that may be repeated is repeated; 0 for never.
            traceparent: The W3C trace context of its calls. Without it, a call belongs to the
                current span of OpenTelemetry, if the program uses OpenTelemetry.
            metadata: Headers for its calls, in addition to the headers of this client, for example
                for a proxy. The service ignores names that it does not know.
            on_answer: Called with the Answer to each attempt of a call, even a failed attempt, but
                not for `watch`. The Answer has the request id and the metadata. It must not block
                or raise.

        Raises:
            ConfigurationError: An option is not valid.
        """
        options = self._options.changed(
            timeout, timeouts, max_retries, traceparent, metadata, on_answer
        )
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._options = options
        if credential is not None:
            other._credential = find_credential(credential)
        return other

    async def close(self) -> None:
        """Closes the connection, which ends the calls that are in flight."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _headers(self, more: Sequence[tuple[str, str]] = ()) -> Headers:
        return self._options.headers(await async_token_of(self._credential), more)

    async def _call(self, call: Call[T]) -> T:
        warn_of_fields(call.request)
        attempts = Attempts(call, self._options, self._monotonic)
        while True:
            try:
                return await self._attempt(call, attempts)
            except CallError as error:
                pause_seconds = attempts.pause_seconds(error)
                log_failure(call.rpc, error, pause_seconds)
            await self._sleep(pause_seconds)

    def _pages(
        self,
        rpc: str,
        decode: Callable[[Any, str], Page[T]],
        page_size: int | None,
        page_token: str | None,
        /,
        **fields: Any,
    ) -> AsyncPages[T]:
        """The pages of a list. They begin with the page that the token names, or with the first."""
        return AsyncPages(
            lambda token: self._call(
                make_call(rpc, decode, page_size=page_size or 0, page_token=token, **fields)
            ),
            page_token or "",
        )

    async def _attempt(self, call: Call[T], attempts: Attempts) -> T:
        # The timeout includes the time to get the credential.
        began, headers = self._monotonic(), await self._headers(call.headers)
        timeout = attempts.remaining_seconds()
        try:
            response, metadata = await self._transport.call(
                call.rpc, call.request, timeout, headers
            )
        except AsyncTransport.ERRORS as error:
            failure = self._transport.failure(error)
            self._answered(call.rpc, began, metadata_of(error), failure)
            raise_failure(failure, error)
        request_id = self._answered(call.rpc, began, metadata)
        return call.decode(response, request_id)

    def _answered(
        self, rpc: str, began: float, metadata: Iterable[Any], error: BaseException | None = None
    ) -> str:
        """Reports the answer to an attempt. Returns its request id."""
        pairs = [pair for each in metadata for pair in each or ()]
        request_id, elapsed = request_id_of(pairs), self._monotonic() - began
        warn_of_rpc(rpc, dict(pairs))
        if error is None:
            _log.debug("%s answered in %.0f ms, request %s", rpc, elapsed * 1000, request_id)
        if self._options.on_answer is not None and (error is None or isinstance(error, CallError)):
            known = request_id or (error.request_id if error is not None else "")
            self._options.on_answer(Answer(rpc, known, dict(pairs), elapsed, error))
        return request_id

    async def _events(self, watch: Watch[T]) -> AsyncGenerator[T, None]:
        while True:
            try:
                # Ends the stream at once if the caller closes the watch.
                async with aclosing(self._stream(watch)) as events:
                    async for event in events:
                        yield event
                if watch.is_over:
                    return
                raise UnavailableError("The stream of events has ended.", is_from_service=False)
            except CallError as error:
                pause_seconds = watch.pause_seconds(error)
                log_failure(watch.rpc, error, pause_seconds)
            await self._sleep(pause_seconds)

    async def _stream(self, watch: Watch[T]) -> AsyncGenerator[T, None]:
        headers = await self._headers()
        stream = self._transport.stream(
            watch.rpc, watch.request(), watch.remaining_seconds(), headers, self._idle_seconds
        )
        try:
            while (message := await stream.read()) is not None:
                event = watch.receive(message)
                if event is not None:
                    yield event
                if watch.is_over:
                    return
        finally:
            stream.close()

    def _limits(self, rpc: str, timeout: Seconds | None, reconnect_for: Seconds) -> WatchLimits:
        return WatchLimits(
            connect_seconds=self._options.timeout_of(rpc),
            reconnect_seconds=seconds(reconnect_for),
            timeout=None if timeout is None else seconds(timeout),
            renews_credential=callable(self._credential),
            monotonic=self._monotonic,
        )
