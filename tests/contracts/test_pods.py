"""The contract of Pods: with processes on this machine, in a sandbox too, and in both fakes."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from tests.contracts.pods import FakeCase, InvariantsCase, LocalCase, PodsCase, WithFiles
from tests.contracts.pods_suite import *  # noqa: F403 - its tests run here

_WITH_FILES: dict[str, Callable[[Path], AbstractAsyncContextManager[WithFiles]]] = {
    "fake": FakeCase.open,
    "local": LocalCase.open,
    "sandbox": LocalCase.open_in_sandbox,
}
# The agents of tests/faults/invariants always start, and have no files.
_CASES: dict[str, Callable[[Path], AbstractAsyncContextManager[PodsCase]]] = {
    **_WITH_FILES,
    "invariants": InvariantsCase.open,
}


@pytest.fixture(params=_CASES)
async def case(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[PodsCase]:
    """Each implementation in turn."""
    async with _CASES[request.param](tmp_path) as case:
        yield case


@pytest.fixture(params=_WITH_FILES)
async def case_with_files(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[WithFiles]:
    """Each implementation in turn whose pods have files."""
    async with _WITH_FILES[request.param](tmp_path) as case:
        yield case
