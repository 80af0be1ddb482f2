"""The page tokens of the lists: each token continues only its own list."""

import hashlib
from base64 import urlsafe_b64encode
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from evershell.workspace.v1 import workspace_service_pb2 as messages

from tests.support.world import World
from tests.wire.api.running import OBSERVER, Running, bearer

Request = Any


@pytest.fixture
async def lists(server: Running, world: World) -> dict[str, tuple[Callable[..., Request], str]]:
    """The request of each list, and the field of the answer with the items, by the list's name.

    Each list has at least two items.
    """
    ids = []
    for _ in range(2):
        idle = await world.add()
        for _ in range(2):
            ended = await world.run(idle)
            await world.end(idle.id, ended.id)
        ids.append(idle.id)
        for _ in range(2):
            await call(server, messages.CancelTaskRequest(workspace_id=idle.id))
        await world.add_busy()

    def tasks_of(index: int) -> Callable[..., Request]:
        return lambda **page: messages.ListTasksRequest(workspace_id=ids[index], **page)

    def audit(**filter_: Any) -> Callable[..., Request]:
        return lambda **page: messages.ListAuditEntriesRequest(**filter_, **page)

    return {
        "workspaces": (messages.ListWorkspacesRequest, "workspaces"),
        "tasks": (tasks_of(0), "tasks"),
        "tasks of another workspace": (tasks_of(1), "tasks"),
        "active tasks": (partial(messages.ListTasksRequest, active=True), "tasks"),
        "audit": (audit(), "entries"),
        "audit of a method": (audit(rpc="CancelTask"), "entries"),
        "audit of a workspace": (audit(workspace_id=ids[0]), "entries"),
    }


async def call(server: Running, request: Request, token: str = "") -> Any:
    method = getattr(server.stub, type(request).__name__.removesuffix("Request"))
    return await method(request, metadata=bearer(token) if token else bearer())


@pytest.mark.parametrize("named", ["a\0b", "\n", "'", "", "x" * 129])
async def test_a_token_names_an_id(server: Running, world: World, named: str) -> None:
    """Anyone can compute the checksum of a token, so the id in it must be checked."""
    listed = b"ListWorkspacesRequest org_a "
    checksum = hashlib.sha256(listed + named.encode()).digest()[:6]
    token = urlsafe_b64encode(checksum + named.encode()).decode().rstrip("=")
    request = messages.ListWorkspacesRequest(page_token=token)
    seen = await server.fails(server.stub.ListWorkspaces(request, metadata=bearer()))
    assert seen.slug == "validation_error"
    (violation,) = seen.details["BadRequest"].field_violations
    assert violation.field == "page_token"


async def test_a_token_continues_its_list_and_no_other(
    server: Running, lists: dict[str, tuple[Callable[..., Request], str]]
) -> None:
    tokens = {}
    for name, (make, items) in lists.items():
        first = await call(server, make(page_size=1))
        tokens[name] = first.next_page_token
        # A call with another page size, or by another caller of the organization, may continue the
        # list.
        rest = await call(server, make(page_size=200, page_token=tokens[name]), OBSERVER)
        whole = await call(server, make(page_size=200))
        assert [*getattr(first, items), *getattr(rest, items)] == list(getattr(whole, items)), name
        assert len(getattr(rest, items)) > 0
    for name, (make, _) in lists.items():
        for other, token in tokens.items():
            if other != name:
                request = make(page_token=token)
                method = getattr(server.stub, type(request).__name__.removesuffix("Request"))
                seen = await server.fails(method(request, metadata=bearer()))
                assert seen.slug == "validation_error", (name, other)
                (violation,) = seen.details["BadRequest"].field_violations
                assert violation.field == "page_token"
