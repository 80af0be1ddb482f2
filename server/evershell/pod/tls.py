"""TLS between the control plane and its agents, if AGENT_TLS is on.

Both sides present a certificate, whichever of them opens the connection. Different authorities
issue the certificates of the control plane and of agents, so that an agent cannot pass for the
control plane. Each certificate has a single name, and each side checks the name of the other side.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc
import grpc.aio

# The control plane's name in certificates. No DNS has it: `.internal` is reserved for private use.
CONTROL_PLANE = "control-plane.evershell.internal"

Options = Sequence[tuple[str, int | str]]
# Closes a connection on which sent data stays unacknowledged for this long: with keepalive, gRPC
# sets TCP_USER_TIMEOUT to this (tcp(7)). Otherwise the kernel retransmits at ever longer intervals,
# and after a partition, calls on the connection may go on failing for as long as the partition
# lasted.
_UNACKNOWLEDGED_MILLISECONDS = 2_000
_LIVENESS: Options = (
    ("grpc.keepalive_timeout_ms", _UNACKNOWLEDGED_MILLISECONDS),
    # Turns keepalive on. By default, servers do not tolerate more than one ping in 5 minutes.
    ("grpc.keepalive_time_ms", 600_000),
)


def agent_name(workspace_id: str, epoch: int) -> str:
    """The name in an agent's certificate. It differs for each epoch of a workspace."""
    return f"{epoch}.{workspace_id}.agent.evershell.internal"


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsIdentity:
    """What one side needs, as PEM: its certificate and key, and the authority of the other side."""

    certificate: str
    private_key: str = field(repr=False)
    trusted: str


def listen(server: grpc.aio.Server, address: str, identity: TlsIdentity | None) -> int:
    """Makes the server listen on `address` (host:port), and returns the port.

    With TLS, the server refuses clients without a certificate of the trusted authority. Raises
    RuntimeError if the port is in use.
    """
    if identity is None:
        return server.add_insecure_port(address)
    credentials = grpc.ssl_server_credentials(
        [(identity.private_key.encode(), identity.certificate.encode())],
        root_certificates=identity.trusted.encode(),
        require_client_auth=True,
    )
    return server.add_secure_port(address, credentials)


class Connector:
    """Opens channels to the other side."""

    def __init__(self, identity: TlsIdentity | None) -> None:
        """Without an identity, the channels use plain text."""
        self.has_tls = identity is not None
        if identity is not None:
            self._credentials = grpc.ssl_channel_credentials(
                identity.trusted.encode(),
                identity.private_key.encode(),
                identity.certificate.encode(),
            )

    def open(self, address: str, name: str, options: Options) -> grpc.aio.Channel:
        """A channel to `address` (host:port).

        With TLS, the channel accepts only a certificate of the trusted authority for `name`.
        """
        # `options` come first, because gRPC uses the first value of an option.
        options = [*options, *_LIVENESS]
        if not self.has_tls:
            return grpc.aio.insecure_channel(address, options=options)
        named = [*options, ("grpc.ssl_target_name_override", name)]
        return grpc.aio.secure_channel(address, self._credentials, options=named)
