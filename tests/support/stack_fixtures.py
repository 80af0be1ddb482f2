"""Fixtures: one stack for all tests, and one workspace for each test."""

from collections.abc import Iterator
from contextlib import suppress

import httpx
import pytest

from tests.support.ports import free_ports
from tests.support.stack import Gate, Stack, Workspace


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The stack that all tests share, except for tests that stop it. Its metrics are on.

    The stack starts with an empty folder, like the stack of a new user.
    """
    state_dir = tmp_path_factory.mktemp("stack") / "state"
    running = Stack(
        state_dir,
        METRICS_ADDRESS=f"127.0.0.1:{free_ports(5, in_a_row=5)[0]}",
        # Tests receive webhooks on loopback.
        WEBHOOK_ALLOWED_NETWORKS="127.0.0.0/8",
    )
    running.makes_cluster = True
    with running.started():
        yield running


@pytest.fixture
def workspace(stack: Stack) -> Iterator[Workspace]:
    """An idle workspace for one test. Its agent, which takes 20 MiB, ends after the test."""
    made = Workspace(stack)
    yield made
    # The stop may fail: the workspace may be in any state, and workers may still be starting.
    with suppress(httpx.TransportError):
        stack.rest().call("POST", f"{made.path}/stop")


@pytest.fixture
def gate(workspace: Workspace) -> Gate:
    """A command that runs in the workspace until the test opens the gate."""
    return Gate(workspace)
