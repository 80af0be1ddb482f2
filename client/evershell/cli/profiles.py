"""The profiles that `evershell login` writes, each a service and the credential for it."""

import json
import os
import stat
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click

from evershell.cli.folder_lock import folder_lock

FILE_VARIABLE = "EVERSHELL_CONFIG"
DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Profile:
    """A service, and the credential for it."""

    url: str
    credential: str = field(repr=False)
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None


def path() -> Path:
    """The path of the file with the profiles."""
    chosen = os.environ.get(FILE_VARIABLE)
    return Path(chosen) if chosen else Path(click.get_app_dir("evershell")) / "profiles.json"


def read() -> dict[str, Profile]:
    """All profiles by name.

    Raises click.ClickException if the file cannot be read or is not valid, or if other users have
    access to it.
    """
    file = path()
    try:
        mode = file.stat().st_mode
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise click.ClickException(
                f"Others can read the credentials in {file}. Run `chmod 600 {file}`."
            )
        content = json.loads(file.read_text())
        return {name: _profile(**fields) for name, fields in content["profiles"].items()}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise click.ClickException(f"{file} cannot be read: {error.strerror}.") from error
    except (ValueError, TypeError, KeyError, AttributeError):
        # Hides the error itself, whose text could contain a credential.
        raise click.ClickException(
            f"{file} is not valid. Remove it, and run `evershell login` again."
        ) from None


def _profile(**fields: Any) -> Profile:
    """The profile with these fields. Raises TypeError if they are not valid."""
    profile = Profile(**fields)
    files = (profile.ca_file, profile.cert_file, profile.key_file)
    is_text = all(isinstance(text, str) for text in (profile.url, profile.credential))
    # Without an address, the credential could be sent to any service.
    if not is_text or not profile.url or not all(isinstance(file, str | None) for file in files):
        raise TypeError
    return profile


def add(name: str, profile: Profile) -> None:
    """Adds or replaces the profile. Keeps profiles that other processes add at the same time.

    Raises click.ClickException.
    """
    file = path()
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with folder_lock(file.parent):
            _write(file, {**read(), name: profile})
    except OSError as error:
        raise click.ClickException(f"{file} cannot be written: {error.strerror}.") from error


def _write(file: Path, profiles: dict[str, Profile]) -> None:
    """Replaces the file atomically. At no time can anyone but the owner read it."""
    content = {"profiles": {name: asdict(profile) for name, profile in profiles.items()}}
    descriptor, unfinished = tempfile.mkstemp(prefix=f"{file.name}.", dir=file.parent)
    try:
        with os.fdopen(descriptor, "w") as opened:
            json.dump(content, opened, indent=2)
        Path(unfinished).replace(file)
    except BaseException:
        Path(unfinished).unlink()
        raise
