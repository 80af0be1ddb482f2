"""One stack for the tests of every folder, and a workspace of it for each."""

from collections.abc import Iterator

import pytest

from tests.support.stack import Gate, Stack, Workspace


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One stack for all tests that do not stop it."""
    running = Stack(tmp_path_factory.mktemp("stack") / "state")
    try:
        running.start()
        yield running
        assert running.stop() == 0
    finally:
        running.kill_if_running()


@pytest.fixture
def workspace(stack: Stack) -> Workspace:
    """A workspace of the test's own, idle."""
    return Workspace(stack)


@pytest.fixture
def gate(workspace: Workspace) -> Gate:
    """A tool call of the workspace that goes on until the test lets it end."""
    return Gate(workspace)
