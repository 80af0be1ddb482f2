"""Selects which cases of a long test run in `make test-exhaustive`.

`make soak` runs all of them.
"""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def smoke(cases: Iterable[Any], run: Collection[Any]) -> list[Any]:
    """Returns the cases for a parameter of a test.

    All except those in `run` get the mark `soak`.
    """
    return [each if each in run else pytest.param(each, marks=pytest.mark.soak) for each in cases]
