"""Where the commands find the service: the environment's settings, and what a running stack says of
itself.
"""

import json
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError

from server.config import Settings


def read_settings() -> Settings:
    """The settings. Raises click.ClickException, which names each variable that is wrong."""
    try:
        return Settings.read()
    except ValidationError as error:
        problems = "; ".join(
            f"{str(problem['loc'][0]).upper()}: {problem['msg']}" for problem in error.errors()
        )
        raise click.ClickException(f"The environment is not valid. {problems}") from error


def read_ready(state_dir: Path) -> dict[str, Any]:
    """What the running stack has written to ready.json; empty when none runs. Raises
    click.ClickException.
    """
    path = state_dir / "ready.json"
    try:
        ready: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise click.ClickException(f"{path} cannot be read: {error}.") from error
    return ready
