"""Selects the cases of a long test for `make test-exhaustive`; all run in `make soak`."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def smoke(cases: Iterable[Any], run: Collection[Any]) -> list[Any]:
    """The cases for a parameter of a test. All but those in `run` get the mark `soak`."""
    return [each if each in run else pytest.param(each, marks=pytest.mark.soak) for each in cases]
