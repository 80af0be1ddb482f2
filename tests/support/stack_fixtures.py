"""One stack for the tests of every folder, and a workspace of it for each."""

from collections.abc import Iterator
from contextlib import suppress

import httpx
import pytest

from tests.support.ports import free_ports
from tests.support.stack import Gate, Stack, Workspace


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One stack for all tests that do not stop it. It serves metrics and has crash points."""
    folder = tmp_path_factory.mktemp("stack")
    (folder / "points").mkdir()
    running = Stack(
        folder / "state",
        METRICS_PORT=str(free_ports(3, in_a_row=3)[0]),
        CRASH_POINTS_DIR=str(folder / "points"),
    )
    try:
        running.start()
        yield running
        assert running.stop() == 0
    finally:
        running.kill_if_running()


@pytest.fixture
def workspace(stack: Stack) -> Iterator[Workspace]:
    """A workspace of the test's own, idle. Its agent, which takes 20 MiB, ends with the test."""
    made = Workspace(stack)
    yield made
    # A test may have left it in any state, or the workers just starting.
    with suppress(httpx.TransportError):
        stack.rest().call("POST", f"{made.path}/stop")


@pytest.fixture
def gate(workspace: Workspace) -> Gate:
    """A tool call of the workspace that goes on until the test lets it end."""
    return Gate(workspace)
