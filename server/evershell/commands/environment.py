"""Reads the environment and ready.json for commands, with human-readable error messages."""

from collections.abc import Callable
from pathlib import Path

import click
from pydantic import ValidationError

from evershell.app.settings import Settings
from evershell.local.ready import Ready


def read_settings() -> Settings:
    """The settings. Raises click.ClickException, which names each variable that is not valid."""
    try:
        return Settings.read()
    except ValidationError as error:
        problems = _problems(error, lambda name: name.upper())
        raise click.ClickException(f"The environment is not valid. {problems}") from error


def read_ready(state_dir: Path) -> Ready | None:
    """The ready.json of the running stack; None if no stack runs. Raises click.ClickException."""
    try:
        return Ready.read(state_dir)
    except ValidationError as error:
        path = state_dir / "ready.json"
        raise click.ClickException(f"{path} cannot be read: {_problems(error)}.") from None
    except (OSError, ValueError) as error:
        raise click.ClickException(
            f"{state_dir / 'ready.json'} cannot be read: {error}."
        ) from error


def _problems(error: ValidationError, display: Callable[[str], str] = str) -> str:
    """The invalid fields, each with its problem.

    The error's own text contains the values, and some of them are secrets.
    """
    return "; ".join(
        ": ".join(filter(None, (display(".".join(map(str, each["loc"]))), each["msg"])))
        for each in error.errors()
    )
