"""`ready.json`: the addresses and credentials of a running stack, for programs on this machine."""

import ssl
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict

from evershell.local.private_file import write_private

_NAME = "ready.json"
# Exports variables for a shell: first_calls.py.
ENVIRONMENT = "demo.env"


class Demo(BaseModel):
    """The demo organization: a workspace, and credentials by name."""

    model_config = ConfigDict(frozen=True)

    org_id: str
    workspace_id: str
    # API keys by template; session tokens of the owner and a member, an expired one, and one of
    # another organization.
    tokens: dict[str, str]


class Ready(BaseModel):
    """The content of ready.json. Its names are stable."""

    model_config = ConfigDict(frozen=True)

    rest_url: str
    # host:port of gRPC at the edge.
    grpc_addr: str
    # host:port of the first worker.
    server_addr: str
    database_url: str
    # The edge's certificate; None without TLS.
    tls_cert_file: str | None = None
    demo: Demo

    @classmethod
    def read(cls, state_dir: Path) -> Self | None:
        """Reads the file of the stack that runs on `state_dir`; None if no stack runs.

        Raises OSError, and ValueError if the file is not valid.
        """
        try:
            return cls.model_validate_json((state_dir / _NAME).read_text())
        except FileNotFoundError:
            return None

    def write(self, state_dir: Path) -> None:
        """Replaces the file. Raises OSError."""
        write_private(state_dir / _NAME, self.model_dump_json(indent=2, exclude_none=True))

    @property
    def grpc_url(self) -> str:
        """The address of gRPC at the edge, as the client takes it."""
        return f"{'https' if self.tls_cert_file else 'http'}://{self.grpc_addr}"

    def tls(self) -> ssl.SSLContext | bool:
        """The value of httpx's argument `verify` that accepts the edge's certificate."""
        return verification(self.tls_cert_file)


def clear(state_dir: Path) -> None:
    """Removes the files that say that a stack is ready."""
    for name in (_NAME, ENVIRONMENT):
        (state_dir / name).unlink(missing_ok=True)


def verification(cert_file: str | Path | None) -> ssl.SSLContext | bool:
    """The value of httpx's `verify` for an edge with this certificate; None without TLS."""
    return trust(cert_file) if cert_file else True


def trust(cert_file: str | Path) -> ssl.SSLContext:
    """A TLS context that trusts exactly this certificate, for any host name and from any issuer."""
    context = ssl.create_default_context(cafile=str(cert_file))
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.check_hostname = False
    return context
