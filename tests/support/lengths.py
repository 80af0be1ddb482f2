"""Selects the cases of a long test that `make test-exhaustive` runs.

`make soak` runs all cases.
"""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def smoke(cases: Iterable[Any], run: Collection[Any]) -> list[Any]:
    """Returns the cases for a parameter of a test.

    Gives all cases that are not in `run` the mark `soak`.
    """
    return [each if each in run else pytest.param(each, marks=pytest.mark.soak) for each in cases]
