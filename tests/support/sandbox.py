"""Whether the sandbox of pods works on this machine."""

from functools import cache
from pathlib import Path

import pytest

from evershell.core.errors import OperatorError
from evershell.fleet.local.isolation import Sandbox, choose


def has_sandbox() -> bool:
    """Whether pods have a sandbox by default on this machine."""
    return not _reason()


def skip_without_sandbox() -> None:
    """Skips the test if the sandbox does not work on this machine."""
    if reason := _reason():
        pytest.skip(f"pods have no sandbox here: {reason}")


def working_sandbox(state_dir: Path) -> Sandbox:
    """Returns a sandbox for pods. Skips the test if the sandbox does not work on this machine."""
    skip_without_sandbox()
    found = choose("sandbox", state_dir)
    assert isinstance(found, Sandbox)
    return found


@cache
def _reason() -> str:
    try:
        choose("sandbox", Path("/nonexistent"))
    except OperatorError as error:
        return str(error)
    return ""
