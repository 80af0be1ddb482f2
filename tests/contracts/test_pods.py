"""The contract of Pods: processes on this machine, with and without a sandbox, and the fake."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from evershell.fleet.local.fork_server import ForkServer
from tests.contracts.pods import AGENT, FakeCase, LocalCase, PodsCase
from tests.contracts.pods_suite import *  # noqa: F403 - its tests run here
from tests.support import forking

_CASES: dict[str, Callable[[Path], AbstractAsyncContextManager[PodsCase]]] = {
    "fake": FakeCase.open,
    "local": LocalCase.open,
    "sandbox": LocalCase.open_in_sandbox,
}


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    """The fork server that all tests share."""
    started = forking.started(AGENT)
    yield started
    asyncio.run(forking.end(started))


@pytest.fixture(params=[*_CASES, "forked"])
async def case(
    request: pytest.FixtureRequest, tmp_path: Path, server: ForkServer
) -> AsyncIterator[PodsCase]:
    """Each implementation of Pods in turn."""
    opened = _CASES.get(request.param)
    async with opened(tmp_path) if opened else LocalCase.open_forked(tmp_path, server) as case:
        yield case
