"""What both clients share: the address, the credential, the options and the connection."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc

from evershell.client._attempts import Attempts, Options
from evershell.client._calls import Call, Seconds, seconds
from evershell.client._credential import AsyncCredential, check, find_credential
from evershell.client._endpoint import Endpoint, channel_credentials, find_endpoint
from evershell.client._trace import trace_headers
from evershell.client._watch import Watch
from evershell.client.errors import CallError, ConfigurationError

_log = logging.getLogger("evershell.client")


@dataclass(slots=True)
class Connection:
    """A channel that several clients may share."""

    channel: Any
    is_owned: bool
    is_closed: bool = False


class BaseClient:
    """The state of a client."""

    def __init__(
        self,
        url: str | None,
        credential: AsyncCredential | None,
        *,
        insecure: bool,
        timeout: Seconds,
        max_retries: int,
        ca_file: str | Path | None,
        cert_file: str | Path | None,
        key_file: str | Path | None,
        channel: Any,
    ) -> None:
        self._options = _checked(Options(seconds(timeout), max_retries))
        self._credential = find_credential(credential)
        self._monotonic: Callable[[], float] = time.monotonic
        files = (ca_file, cert_file, key_file)
        if channel is not None:
            if url or insecure or any(files):
                raise ConfigurationError("A channel has its own address and its own TLS files.")
            self._endpoint = None
            self._connection = Connection(channel, is_owned=False)
            return
        endpoint = find_endpoint(url, insecure=insecure)
        if any(files) and not endpoint.is_tls:
            raise ConfigurationError(
                f"{endpoint.url} is plain text, which uses no certificate. Write https://…"
            )
        tls = channel_credentials(*files) if endpoint.is_tls else None
        self._endpoint = endpoint
        self._connection = Connection(self._open_channel(endpoint, tls), is_owned=True)

    def __repr__(self) -> str:
        where = "a channel" if self._endpoint is None else self._endpoint.url
        return f"<{type(self).__name__} of {where}>"

    @property
    def url(self) -> str | None:
        """The address of the service; None if the client uses a channel of the caller."""
        return None if self._endpoint is None else self._endpoint.url

    def _open_channel(self, endpoint: Endpoint, tls: grpc.ChannelCredentials | None) -> Any:
        raise NotImplementedError

    def _with_options(
        self,
        credential: AsyncCredential | None,
        timeout: Seconds | None,
        max_retries: int | None,
        traceparent: str | None,
    ) -> Self:
        old = self._options
        options = Options(
            old.timeout if timeout is None else seconds(timeout),
            old.max_retries if max_retries is None else max_retries,
            old.traceparent if traceparent is None else traceparent,
        )
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._options = _checked(options)
        if credential is not None:
            other._credential = find_credential(credential)
        return other

    def _attempts(self, call: Call[Any]) -> Attempts:
        return Attempts(call.repeat, self._options, self._monotonic, call.extra_seconds)

    def _metadata(self, token: str, more: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        headers = trace_headers(self._options.traceparent)
        return [("authorization", f"Bearer {check(token)}"), *headers, *more]

    def _watch(
        self,
        workspace_id: str,
        after: int,
        task_id: str | None,
        timeout: Seconds | None,
        reconnect_for: Seconds,
    ) -> Watch:
        return Watch(
            workspace_id,
            after,
            task_id,
            connect_seconds=self._options.timeout,
            reconnect_seconds=seconds(reconnect_for),
            timeout=None if timeout is None else seconds(timeout),
            renews_credential=callable(self._credential),
            monotonic=self._monotonic,
        )


def log_answer(rpc: str, request_id: str, began: float, now: float) -> None:
    """Logs that a call was answered."""
    _log.debug("%s answered in %.0f ms, request %s", rpc, (now - began) * 1000, request_id)


def log_failure(rpc: str, error: CallError, pause_seconds: float) -> None:
    """Logs that a call is made again after a failure."""
    _log.info(
        "%s failed with %s, request %s; again in %.1f s",
        rpc,
        error.slug,
        error.request_id or "-",
        pause_seconds,
    )


def _checked(options: Options) -> Options:
    if options.timeout <= 0:
        raise ConfigurationError("timeout must be more than 0 s.")
    if options.max_retries < 0:
        raise ConfigurationError("max_retries must not be negative.")
    return options
