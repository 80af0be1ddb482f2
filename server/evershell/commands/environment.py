"""Reads the environment and ready.json for the commands, and reports errors to the operator."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import psycopg
from pydantic import ValidationError

from evershell.app.removed_settings import refuse_removed_settings, renamed_settings
from evershell.app.settings import Settings
from evershell.core.errors import OperatorError, UnavailableError
from evershell.stack.ready import Ready
from evershell.store.connections import problem_of


@contextmanager
def problems_reported() -> Iterator[None]:
    """Turns an error that the operator can fix into the error message of the command."""
    try:
        yield
    except OperatorError as error:
        raise click.ClickException(str(error)) from error
    except UnavailableError as error:
        raise click.ClickException(f"The database does not answer: {error}.") from error
    except psycopg.Error as error:
        message = f"The database cannot be used: {problem_of(error)}."
        raise click.ClickException(message) from None


def read_settings() -> Settings:
    """The settings. Raises click.ClickException, which names each variable that is not valid."""
    with problems_reported():
        refuse_removed_settings(os.environ)
    os.environ.update(renamed_settings(os.environ))
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
