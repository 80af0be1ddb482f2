"""What both clients share: the address, the credential, the options and the connection."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc

from evershell.client._attempts import Attempts
from evershell.client._calls import Call
from evershell.client._credential import AsyncCredential, check, find_credential
from evershell.client._failures import request_id_of
from evershell.client._fields import Seconds, optional, seconds
from evershell.client._options import Options
from evershell.client._trace import trace_headers
from evershell.client._watch import Watch
from evershell.client.answers import Answer
from evershell.client.endpoint import Endpoint, channel_credentials, find_endpoint
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
        options: Options,
        ca_file: str | Path | None,
        cert_file: str | Path | None,
        key_file: str | Path | None,
        channel: Any,
    ) -> None:
        self._options = options
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

    def _with_options(self, credential: AsyncCredential | None, options: Options) -> Self:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._options = options
        if credential is not None:
            other._credential = find_credential(credential)
        return other

    def _attempts(self, call: Call[Any]) -> Attempts:
        return Attempts(call, self._options, self._monotonic)

    def _metadata(self, token: str, more: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        headers = trace_headers(self._options.traceparent)
        own = self._options.metadata.items()
        return [("authorization", f"Bearer {check(token)}"), *headers, *own, *more]

    def _answered(
        self, rpc: str, began: float, metadata: Iterable[Any], error: BaseException | None = None
    ) -> str:
        """Reports the answer to an attempt. Returns its request id."""
        pairs = [pair for each in metadata for pair in each or ()]
        request_id, elapsed = request_id_of(pairs), self._monotonic() - began
        if error is None:
            _log.debug("%s answered in %.0f ms, request %s", rpc, elapsed * 1000, request_id)
        if self._options.on_answer is not None and (error is None or isinstance(error, CallError)):
            known = request_id or (error.request_id if error is not None else "")
            self._options.on_answer(Answer(rpc, known, dict(pairs), elapsed, error))
        return request_id

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
            optional("task_id", task_id),
            connect_seconds=self._options.timeout_of("WatchEvents"),
            reconnect_seconds=seconds(reconnect_for),
            timeout=None if timeout is None else seconds(timeout),
            renews_credential=callable(self._credential),
            monotonic=self._monotonic,
        )


def log_failure(rpc: str, error: CallError, pause_seconds: float) -> None:
    """Logs that a call is made again after a failure."""
    _log.info(
        "%s failed with %s, request %s; again in %.1f s",
        rpc,
        error.slug,
        error.request_id or "-",
        pause_seconds,
    )
