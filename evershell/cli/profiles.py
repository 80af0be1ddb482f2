"""The profiles that `evershell login` writes: a service, and the credential for it."""

import json
import os
import stat
from dataclasses import asdict, dataclass, field
from pathlib import Path

import click

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
    """The file of the profiles."""
    chosen = os.environ.get(FILE_VARIABLE)
    return Path(chosen) if chosen else Path(click.get_app_dir("evershell")) / "profiles.json"


def read() -> dict[str, Profile]:
    """All profiles by name. Raises click.ClickException if others can read the file."""
    file = path()
    try:
        mode = file.stat().st_mode
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise click.ClickException(
                f"Others can read the credentials in {file}. Run `chmod 600 {file}`."
            )
        content = json.loads(file.read_text())
        return {name: Profile(**fields) for name, fields in content["profiles"].items()}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise click.ClickException(f"{file} cannot be read: {error.strerror}.") from error
    except (ValueError, TypeError, KeyError, AttributeError):
        # The text of the error could contain a credential.
        raise click.ClickException(
            f"{file} is not valid. Remove it, and run `evershell login` again."
        ) from None


def write(profiles: dict[str, Profile]) -> None:
    """Replaces the file atomically. Only its owner can ever read it."""
    file = path()
    content = {"profiles": {name: asdict(profile) for name, profile in profiles.items()}}
    unfinished = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as opened:
            json.dump(content, opened, indent=2)
        unfinished.replace(file)
    except OSError as error:
        raise click.ClickException(f"{file} cannot be written: {error.strerror}.") from error
