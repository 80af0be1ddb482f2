"""Sends requests to URLs that callers have chosen, and trusts neither the URLs nor the answers."""

import asyncio
import errno
import ipaddress
import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Self

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from evershell.core.addresses import Network
from evershell.features.webhooks.rules import may_call

# The shortest timeout that Standard Webhooks recommends.
ATTEMPT_SECONDS = 15.0
_CONNECT_SECONDS = 5.0
# How much of an answer's body is read. If the body is longer, the connection is closed.
_MAX_BODY_BYTES = 4_096
_MAX_HEADER_BYTES = 8_190
_MAX_HEADERS = 64
# A name is resolved again after this time.
_DNS_SECONDS = 10
# Many, because getaddrinfo blocks a thread for seconds if the DNS servers of a name do not answer
# (process.py).
_DNS_THREADS = 64
_KEEP_ALIVE_SECONDS = 30.0
_NOT_ALLOWED = "the address is not allowed"
_MAX_ERROR_CHARACTERS = 200
_MAX_RETRY_AFTER_SECONDS = 3_600
_GONE = 410
# The statuses with which an overloaded receiver, or a proxy in front of it, answers.
_OVERLOADED = frozenset({429, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of a request."""

    # Empty for a success.
    error: str = ""
    # Whether further requests to the receiver are likely to fail now.
    is_down: bool = False
    # The shortest pause that the receiver asks for.
    retry_after_seconds: float = 0.0
    # Whether the receiver has refused all further requests.
    is_gone: bool = False


class Sender:
    """Sends requests inside its `async with` block, and keeps connections open for later ones.

    Every address is checked when its socket is opened, even an address that the URL contains
    itself, so only checked addresses are called.
    """

    def __init__(self, allowed_networks: Sequence[Network]) -> None:
        self._allowed_networks = allowed_networks
        self._sessions: dict[str, aiohttp.ClientSession] = {}
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        resolver = _Resolver()
        for scheme in ("http", "https"):
            session = self._session(scheme, resolver)
            self._sessions[scheme] = await self._open.enter_async_context(session)
        self._open.push_async_callback(resolver.end)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    def _session(self, scheme: str, resolver: AbstractResolver) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            limit=0,
            resolver=resolver,
            ttl_dns_cache=_DNS_SECONDS,
            keepalive_timeout=_KEEP_ALIVE_SECONDS,
            socket_factory=lambda address: self._socket(scheme, address),
        )
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(
                total=ATTEMPT_SECONDS, connect=_CONNECT_SECONDS, sock_connect=_CONNECT_SECONDS
            ),
            skip_auto_headers=("accept", "accept-encoding"),
            auto_decompress=False,
            read_bufsize=_MAX_BODY_BYTES,
            max_line_size=_MAX_HEADER_BYTES,
            max_field_size=_MAX_HEADER_BYTES,
            max_headers=_MAX_HEADERS,
            trust_env=False,
        )

    def _socket(self, scheme: str, address: Any) -> socket.socket:
        """A socket for an address of getaddrinfo. Raises OSError if it may not be called."""
        family, kind, protocol, _, (host, *_) = address
        if not may_call(ipaddress.ip_address(host), scheme, self._allowed_networks):
            raise OSError(errno.EACCES, _NOT_ALLOWED)
        return socket.socket(family, kind, protocol)

    async def send(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Sends a POST request. Redirects are not followed."""
        try:
            session = self._sessions[url.partition(":")[0].lower()]
            async with session.post(
                url, headers=headers, data=body, allow_redirects=False
            ) as response:
                await _drain(response)
                return _answer(response)
        except TimeoutError:
            return Answer(f"no answer within {ATTEMPT_SECONDS:.0f} s", is_down=True)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Answer(_problem(error), is_down=True)


async def _drain(response: aiohttp.ClientResponse) -> None:
    """Reads the beginning of the body. Closes the connection if that was not the whole body.

    A connection can be used again only after the whole body was read.
    """
    if await response.content.read(_MAX_BODY_BYTES) and not response.content.at_eof():
        response.close()


def _answer(response: aiohttp.ClientResponse) -> Answer:
    status = response.status
    if status // 100 == 2:
        return Answer()
    return Answer(
        f"the receiver answered {status}",
        is_down=status in _OVERLOADED or status == _GONE,
        retry_after_seconds=_seconds(response.headers.get("retry-after", "")),
        is_gone=status == _GONE,
    )


def _seconds(retry_after: str) -> float:
    """The seconds in `retry-after`, at most an hour. 0 for a date, which is rare."""
    if not (retry_after.isascii() and retry_after.isdigit()):
        return 0.0
    return float(min(int(retry_after[:9]), _MAX_RETRY_AFTER_SECONDS))


def _problem(error: Exception) -> str:
    """The error as one line."""
    text = str(error) or type(error).__name__
    if _NOT_ALLOWED in text:
        return _NOT_ALLOWED
    return " ".join(text.split())[:_MAX_ERROR_CHARACTERS]


class _Resolver(AbstractResolver):
    """Resolves names in its own threads.

    A name whose DNS servers do not answer blocks a thread for seconds. In the event loop's default
    threads, which are few, such names would delay all others.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_DNS_THREADS, "webhook-dns")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        addresses = await asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
        )
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=int(address[1]),
                family=of_family,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for of_family, _, protocol, _, address in addresses
        ]

    async def close(self) -> None:
        """Does nothing. A connector closes its resolver, but this resolver is shared."""

    async def end(self) -> None:
        """Ends the threads, without waiting for lookups in progress."""
        self._threads.shutdown(wait=False, cancel_futures=True)
