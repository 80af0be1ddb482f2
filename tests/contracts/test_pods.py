"""The contract of Pods: with processes on this machine, in a sandbox too, and in the fake."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from tests.contracts.pods import FakeCase, LocalCase, PodsCase
from tests.contracts.pods_suite import *  # noqa: F403 - its tests run here

_CASES: dict[str, Callable[[Path], AbstractAsyncContextManager[PodsCase]]] = {
    "fake": FakeCase.open,
    "local": LocalCase.open,
    "sandbox": LocalCase.open_in_sandbox,
    "forked": LocalCase.open_forked,
}


@pytest.fixture(params=_CASES)
async def case(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[PodsCase]:
    """Each implementation in turn."""
    async with _CASES[request.param](tmp_path) as case:
        yield case
