"""Where the service is, and how the client connects to it."""

import ipaddress
import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import grpc

from evershell.client.errors import ConfigurationError
from evershell.version import VERSION

URL_VARIABLE = "EVERSHELL_URL"
_PORTS = {"https": 443, "http": 80}
# A host name, or an IPv4 or IPv6 address.
_HOST = re.compile(r"[a-z0-9._:%-]+")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The target of a channel, and whether it uses TLS."""

    target: str
    is_tls: bool
    is_loopback: bool

    @property
    def url(self) -> str:
        return f"{'https' if self.is_tls else 'http'}://{self.target}"


def find_endpoint(url: str | None) -> Endpoint:
    """Reads the URL; if it is empty, the URL in EVERSHELL_URL. Raises ConfigurationError."""
    text = (url or os.environ.get(URL_VARIABLE, "")).strip()
    if not text:
        raise ConfigurationError(
            f"There is no address to call. Pass `url`, or set {URL_VARIABLE}, for example to "
            "https://acme.evershell.ai."
        )
    try:
        parts = urlsplit(text if "://" in text else f"//{text}")
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise ConfigurationError(f"{text!r} is not a valid address: {error}.") from None
    if (
        parts.scheme not in ("", "http", "https")
        or not _HOST.fullmatch(host)
        or port == 0
        or _has_more(parts)
        or any(map(str.isspace, text))
    ):
        raise ConfigurationError(
            f"{text!r} is not a valid address. Write https://host:port, or http://host:port for "
            "plain text."
        )
    is_tls = parts.scheme == "https" or (not parts.scheme and not is_loopback(host))
    if port is None:
        port = _PORTS["https" if is_tls else "http"]
    return Endpoint(
        f"[{host}]:{port}" if ":" in host else f"{host}:{port}", is_tls, is_loopback(host)
    )


def _has_more(parts: SplitResult) -> bool:
    return bool(
        parts.path.strip("/") or parts.query or parts.fragment or parts.username or parts.password
    )


def is_loopback(host: str) -> bool:
    """Whether the host is a loopback address or `localhost`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def channel_credentials(
    endpoint: Endpoint,
    ca_file: str | Path | None,
    cert_file: str | Path | None,
    key_file: str | Path | None,
) -> grpc.ChannelCredentials | None:
    """Credentials for TLS from PEM files; None for plain text. Raises ConfigurationError."""
    if not endpoint.is_tls:
        if ca_file or cert_file or key_file:
            raise ConfigurationError(
                f"{endpoint.url} is plain text, which uses no certificate. Write https://…"
            )
        return None
    if (cert_file is None) != (key_file is None):
        raise ConfigurationError("cert_file and key_file must be given together.")
    return grpc.ssl_channel_credentials(_read(ca_file), _read(key_file), _read(cert_file))


def _read(path: str | Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from error


def channel_options(endpoint: Endpoint) -> list[tuple[str, str | int]]:
    """The options of a channel."""
    return [
        ("grpc.primary_user_agent", f"evershell-python/{VERSION}"),
        # With gRPC's default of 1 s, a retry in the first second after a failure would not try to
        # connect, but would fail with the last error.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        # Detects that the server has vanished, so that a watch reconnects.
        ("grpc.keepalive_time_ms", 30_000),
        # Keeps gRPC from repeating calls, because the client repeats them by its own rules.
        ("grpc.service_config_disable_resolution", 1),
        # The environment may name a proxy, which cannot reach a loopback address of this machine.
        ("grpc.enable_http_proxy", 0 if endpoint.is_loopback else 1),
    ]
