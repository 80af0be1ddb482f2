"""Which service a command calls, and with which credential."""

import json
import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO, TypeVar

import click

from evershell.cli import profiles
from evershell.client import AsyncClient, Client, ConfigurationError
from evershell.client.endpoint import find_endpoint

_DEFAULT_STATE_DIR = ".state"

_AnyClient = TypeVar("_AnyClient", Client, AsyncClient)


@dataclass(frozen=True, slots=True)
class Target:
    """A service, the credential for it, and the files for TLS."""

    url: str
    credential: str = field(repr=False)
    files: dict[str, str] = field(default_factory=dict)
    # The command-line options with which another command calls the same service.
    options: str = ""

    def connect(self, timeout: float) -> Client:
        """The client. Raises click.ClickException."""
        return self._connected(Client, timeout)

    def connect_async(self, timeout: float) -> AsyncClient:
        """The client for asyncio. Raises click.ClickException."""
        return self._connected(AsyncClient, timeout)

    def _connected(self, kind: type[_AnyClient], timeout: float) -> _AnyClient:
        try:
            return kind(
                self.url,
                self.credential,
                timeout=timeout,
                ca_file=self.files.get("ca_file"),
                cert_file=self.files.get("cert_file"),
                key_file=self.files.get("key_file"),
            )
        except ConfigurationError as error:
            raise click.ClickException(str(error)) from error


def find_target(
    url: str, profile_name: str, token_file: TextIO | None, files: dict[str, str]
) -> Target:
    """The service that the arguments, the environment, a profile or the local stack names.

    The credential of a profile or of the local stack is sent only to its own service. Raises
    click.ClickException.
    """
    credential = read_token(token_file) if token_file else os.environ.get("EVERSHELL_API_KEY", "")
    named = url or ("" if profile_name else os.environ.get("EVERSHELL_URL", ""))
    known = _known(profile_name, needed=not (named and credential))
    match = next((each for each in known if not named or _is_same(named, each.url)), None)
    options = f" --url {shlex.quote(url)}" if url else ""
    options += f" --profile {shlex.quote(profile_name)}" if profile_name else ""
    if match is None:
        if not named:
            raise click.ClickException(
                f"There is no service to call: no stack runs in {_state_dir()}. Start one with "
                "`evershell up`, name the service with --url or EVERSHELL_URL, or run "
                "`evershell login`."
            )
        if not credential:
            raise click.ClickException(
                f"There is no credential for {named}. Set EVERSHELL_API_KEY, name a file that "
                "holds it with --token-file, or run `evershell login`."
            )
        return Target(named, credential, files, options)
    return Target(match.url, credential or match.credential, {**match.files, **files}, options)


def _is_same(named: str, url: str) -> bool:
    """Whether `named` is the same address as the URL. `named` may lack the scheme."""
    try:
        known = find_endpoint(url)
        scheme = "https" if known.is_tls else "http"
        address = named if "://" in named else f"{scheme}://{named}"
        return find_endpoint(address) == known
    except ConfigurationError:
        return False


def read_token(file: TextIO) -> str:
    """The credential in the file. Raises click.ClickException."""
    try:
        token = file.read().strip()
    except UnicodeDecodeError:
        # Hides the error itself, whose message contains a part of the file.
        raise click.ClickException(f"{file.name} holds no token: it is not valid text.") from None
    except OSError as error:
        raise click.ClickException(f"{file.name} cannot be read: {error.strerror}.") from error
    if not token:
        raise click.ClickException(f"There is no credential. {file.name} is empty.")
    return token


def _known(profile_name: str, *, needed: bool) -> list[Target]:
    """The services of the profile and of the local stack. Raises errors only if `needed`."""
    targets = []
    try:
        stored = profiles.read()
        if profile_name and profile_name not in stored:
            raise click.ClickException(
                f"There is no profile {profile_name}. Run `evershell login --profile "
                f"{profile_name}`."
            )
        profile = stored.get(profile_name or profiles.DEFAULT)
        if profile is not None:
            files = {
                "ca_file": profile.ca_file,
                "cert_file": profile.cert_file,
                "key_file": profile.key_file,
            }
            present = {name: path for name, path in files.items() if path}
            targets.append(Target(profile.url, profile.credential, present))
        if not profile_name and (stack := local_stack()) is not None:
            targets.append(stack)
    except click.ClickException:
        if needed:
            raise
    return targets


def _state_dir() -> Path:
    path = Path(os.environ.get("STATE_DIR") or _DEFAULT_STATE_DIR)
    try:
        return path.absolute()
    except FileNotFoundError:
        # The working directory no longer exists.
        return path


def local_stack() -> Target | None:
    """The stack that runs on this machine, with its demo credential; None if none runs.

    Raises click.ClickException if its ready.json cannot be read or is not valid.
    """
    path = _state_dir() / "ready.json"
    try:
        ready = json.loads(path.read_text())
        address, cert_file = str(ready["grpc_addr"]), ready.get("tls_cert_file")
        credential = str(ready["demo"]["tokens"]["full_access"])
    except FileNotFoundError:
        return None
    except OSError as error:
        raise click.ClickException(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        # Hides the error itself, whose text could contain a credential.
        raise click.ClickException(f"{path} cannot be read: it is not valid.") from error
    scheme, files = ("https", {"ca_file": str(cert_file)}) if cert_file else ("http", {})
    return Target(f"{scheme}://{address}", credential, files)
