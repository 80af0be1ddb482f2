"""Images of agents on a real node."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.deploy.long.node.stacks import LIMIT_SECONDS
from tests.support.stack import Stack
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(400)

# Longer than the node takes to try the image.
START_SECONDS = "20"


@contextmanager
def changed(stack: Stack, before: dict[str, str], inside: dict[str, str]) -> Iterator[None]:
    """Restarts the stack with other settings for the block. Its pods continue to run."""
    restart(stack, inside)
    try:
        yield
    finally:
        restart(stack, before)


def restart(stack: Stack, settings: dict[str, str]) -> None:
    assert stack.stop() == 0
    stack.set(**settings)
    stack.start()


def test_an_image_that_cannot_be_pulled(stack: Stack) -> None:
    """The workspace fails, and can be resumed once the operator has set another image."""
    before = {"POD_IMAGE": "evershell:1", "POD_START_SECONDS": "120"}
    inside = {"POD_IMAGE": "localhost/none:1", "POD_START_SECONDS": START_SECONDS}
    with changed(stack, before, inside):
        created = stack.rest().post("/v1/workspaces", {"name": "test"}, 201)["id"]
        path = f"/v1/workspaces/{created}"
        eventually(lambda: stack.rest().get(path)["status"] == "failed", LIMIT_SECONDS)
        reason = stack.rest().get(path)["status_reason"]
        assert reason.startswith(
            f"its agent did not register within {START_SECONDS} s: its image cannot be pulled"
        )
        assert "localhost/none:1" in reason
    stack.rest().post(f"{path}/resume")
    eventually(lambda: stack.rest().get(path)["status"] == "idle", LIMIT_SECONDS)
