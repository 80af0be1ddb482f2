"""Finds the service that a command calls, and the credential for it."""

import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO

import click
import grpc

from evershell.server.cli.environment import read_ready, read_settings
from evershell.server.stack.ready import Ready


@dataclass(frozen=True, slots=True)
class Identity:
    """PEM files for TLS.

    `ca_file` replaces the system's authorities. The certificate and its key are for a service that
    asks for a client certificate.
    """

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    def credentials(self) -> grpc.ChannelCredentials | None:
        """Credentials for a channel; None if no file is set. Raises click.ClickException."""
        if not any((self.ca_file, self.cert_file, self.key_file)):
            return None
        if (self.cert_file is None) != (self.key_file is None):
            raise click.ClickException("--cert-file and --key-file must be given together.")
        return grpc.ssl_channel_credentials(
            _read(self.ca_file), _read(self.key_file), _read(self.cert_file)
        )

    def grpcurl_options(self) -> str:
        """The files as options of grpcurl, each with a space after it."""
        options = {"-cacert": self.ca_file, "-cert": self.cert_file, "-key": self.key_file}
        return "".join(
            f"{option} {shlex.quote(str(path))} " for option, path in options.items() if path
        )


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address of the service, the token, and the files for TLS."""

    address: str
    token: str
    identity: Identity = field(default_factory=Identity)


def find_endpoint(
    address: str, token: str, token_file: TextIO | None, identity: Identity | None = None
) -> Endpoint:
    """The endpoint of the arguments, completed from the stack that runs on this machine.

    Raises click.ClickException if the address or the token is missing or not valid.
    """
    identity = identity or Identity()
    if token_file is not None:
        token = _read_token(token_file)
    ready = _running_stack(needed=not address or not token)
    address = address or (ready.grpc_addr if ready else "")
    if ready is not None and address == ready.grpc_addr:
        # The demo's credential is sent only to its own stack.
        if not token and token_file is None:
            token = ready.demo.tokens.get("full_access", "")
        if ready.tls_cert_file:
            address = f"https://{address}"
            identity = replace(identity, ca_file=identity.ca_file or Path(ready.tls_cert_file))
    if not address:
        raise click.ClickException(
            f"There is no service to call: no stack runs in {read_settings().state_dir}. Start one "
            "with `make run`, or name the service with --address or GRPC_ADDR."
        )
    if not token:
        raise click.ClickException(
            "There is no credential. Export TOKEN, or name a file that holds it with --token-file."
        )
    if not token.isascii() or not token.isprintable() or " " in token:
        raise click.ClickException(
            "The credential is not valid: it contains characters that no token has."
        )
    return Endpoint(address, token, identity)


def _read_token(file: TextIO) -> str:
    try:
        return file.read().strip()
    except UnicodeDecodeError:
        # Not the error's own message, which would show a part of the file.
        raise click.ClickException(f"{file.name} holds no token: it is not a text.") from None
    except OSError as error:
        raise click.ClickException(f"{file.name} cannot be read: {error.strerror}.") from error


def _running_stack(*, needed: bool) -> Ready | None:
    """The stack that runs on this machine. If it is not `needed`, its errors are ignored."""
    try:
        return read_ready(read_settings().state_dir)
    except click.ClickException:
        if needed:
            raise
        return None


def _read(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise click.ClickException(f"{path} cannot be read: {error.strerror}.") from error
