"""Reads the environment and ready.json for commands, with error messages for people."""

from pathlib import Path

import click
from pydantic import ValidationError

from server.config import Settings
from server.stack.ready import Ready


def read_settings() -> Settings:
    """The settings. Raises click.ClickException, which names each variable that is not valid."""
    try:
        return Settings.read()
    except ValidationError as error:
        problems = "; ".join(
            f"{str(problem['loc'][0]).upper()}: {problem['msg']}" for problem in error.errors()
        )
        raise click.ClickException(f"The environment is not valid. {problems}") from error


def read_ready(state_dir: Path) -> Ready | None:
    """The ready.json of the running stack; None if no stack runs. Raises click.ClickException."""
    try:
        return Ready.read(state_dir)
    except ValidationError as error:
        # The error's own text contains the values, and some of them are secrets.
        problems = "; ".join(
            ": ".join(filter(None, (".".join(map(str, problem["loc"])), problem["msg"])))
            for problem in error.errors()
        )
        path = state_dir / "ready.json"
        raise click.ClickException(f"{path} cannot be read: {problems}.") from None
    except (OSError, ValueError) as error:
        raise click.ClickException(
            f"{state_dir / 'ready.json'} cannot be read: {error}."
        ) from error
