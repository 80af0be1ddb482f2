"""Whether the sandbox works here."""

from functools import cache
from pathlib import Path

import pytest

from evershell.core.errors import OperatorError
from evershell.fleet.local.isolation import Sandbox, choose


def has_sandbox() -> bool:
    """Whether the pods of a stack here have a sandbox, unless it is turned off."""
    return not _reason()


def skip_without_sandbox() -> None:
    """Skips the test if the sandbox does not work here."""
    if reason := _reason():
        pytest.skip(f"pods have no sandbox here: {reason}")


def working_sandbox(state_dir: Path) -> Sandbox:
    """A sandbox of pods. Skips the test if it does not work here."""
    skip_without_sandbox()
    found = choose("sandbox", state_dir, None)
    assert isinstance(found, Sandbox)
    return found


@cache
def _reason() -> str:
    try:
        choose("sandbox", Path("/nonexistent"), None)
    except OperatorError as error:
        return str(error)
    return ""
