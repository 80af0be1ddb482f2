"""How many calls of each kind a credential and an organization may hold at a time."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any, cast

import pytest
from evershell.workspace.v1 import task_pb2
from evershell.workspace.v1 import workspace_service_pb2 as messages

from evershell.api.call import Call
from evershell.api.interceptors import shares
from evershell.api.interceptors.interceptor import Method
from evershell.api.interceptors.shares import SHARES, Kind, Places, Share, Shares, kind_of
from evershell.api.method_options import A2A_SERVICE, WORKSPACE_SERVICE, public_methods
from evershell.core.caller import Caller
from evershell.core.errors import Failure
from evershell.core.task import CurrentIteration, Task
from evershell.core.workspace import Workspace
from evershell.stack.envoy.documents import edge_file
from tests.support.faulty_store import FaultyStore
from tests.support.waiting import eventually_async
from tests.support.world import World, caller
from tests.wire.api.running import READER, bearer, running

FEW = Share(total=6, organization=4, credential=2)
# A method of WorkspaceService of each kind that has one. Kind.WAITS has only a method of
# A2AService, and the kinds for bodies have no methods.
METHODS = {
    Kind.FIRST: "GetTask",
    Kind.READS: "ListWorkspaces",
    Kind.STREAMS: "WatchEvents",
    Kind.OTHERS: "SubmitTask",
}
# The cluster and the priority of the edge's routes for each kind that has methods.
ROUTES = {
    Kind.FIRST: ("control_plane", "HIGH"),
    Kind.READS: ("control_plane", "DEFAULT"),
    Kind.OTHERS: ("control_plane", "DEFAULT"),
    Kind.STREAMS: ("control_plane_long", "HIGH"),
    Kind.WAITS: ("control_plane_long", "HIGH"),
}
FIRST = {
    f"/{WORKSPACE_SERVICE}/CancelTask",
    f"/{WORKSPACE_SERVICE}/CancelTasks",
    f"/{WORKSPACE_SERVICE}/GetTask",
    f"/{WORKSPACE_SERVICE}/HoldOrg",
    f"/{WORKSPACE_SERVICE}/ReleaseOrg",
    f"/{WORKSPACE_SERVICE}/StopWorkspace",
    f"/{A2A_SERVICE}/CancelTask",
    f"/{A2A_SERVICE}/GetTask",
}


def method(name: str, service: str = WORKSPACE_SERVICE) -> Method:
    return Method(service, name, bytes, is_stream=name == "WatchEvents")


class Held:
    """Calls that are in progress until the test releases them."""

    def __init__(self) -> None:
        self._shares = Shares()
        self._go_on = asyncio.Event()
        self._calls: list[asyncio.Task[None]] = []

    async def served(self, kind: Kind, by: Caller, count: int = 1) -> int:
        """Makes `count` calls. Returns how many are in progress. All others are refused at once."""

        async def proceed(_call: Call) -> None:
            await self._go_on.wait()

        handler = self._shares.wrap(method(METHODS[kind]), proceed)
        context = cast(Any, None)
        calls = [
            asyncio.ensure_future(
                handler(Call(context, metadata={}, request_id="r", is_rest=True, caller=by))
            )
            for _ in range(count)
        ]
        await asyncio.sleep(0)
        for each in calls:
            if each.done():
                failure = each.exception()
                assert isinstance(failure, Failure) and failure.slug == "rate_limited"
        self._calls += [each for each in calls if not each.done()]
        return sum(not each.done() for each in calls)

    async def end(self) -> None:
        """Ends all calls, every second one by cancelling it."""
        for each in self._calls[::2]:
            each.cancel()
        self._go_on.set()
        await asyncio.gather(*self._calls, return_exceptions=True)
        self._go_on = asyncio.Event()


@pytest.mark.parametrize("kind", METHODS)
async def test_a_credential_and_an_organization_have_a_share(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares, "SHARES", dict.fromkeys(Kind, FEW))
    held = Held()
    one, two, three = (caller(actor_id=f"user_{number}") for number in range(3))
    assert await held.served(kind, one, 5) == FEW.credential
    assert await held.served(kind, two, 5) == FEW.credential
    assert await held.served(kind, three) == 0, "the organization has its share"
    other = [caller(org_id="org_b", actor_id=f"user_{number}") for number in range(3)]
    assert [await held.served(kind, each, 2) for each in other] == [2, 0, 0]
    for rest in METHODS.keys() - {kind}:
        assert await held.served(rest, one) == 1, "each kind has its own places"
    await held.end()
    assert await held.served(kind, one, 5) == FEW.credential


def test_nothing_is_kept_of_callers_without_a_place() -> None:
    places = Places(Kind.OTHERS)
    taken = [places.take(caller(actor_id=f"user_{number}")) for number in range(3)]
    for keys in taken:
        assert isinstance(keys, tuple)
        places.free(keys)
    assert not places.held


def test_the_shares_leave_room_for_others() -> None:
    for share in SHARES.values():
        assert 2 * share.credential <= share.total
        assert share.credential < share.organization <= share.total / 2


def test_cancellations_and_what_tells_whether_they_worked_are_of_the_first_kind() -> None:
    every = public_methods(with_effect=True) | public_methods(with_effect=False)
    paths = {path: method(path.rpartition("/")[2], path.split("/")[1]) for path in every}
    assert {path for path, each in paths.items() if kind_of(each) is Kind.FIRST} == FIRST


def test_the_edge_has_the_same_classes() -> None:
    """Compares the gRPC routes, which name the methods. The REST routes have the same classes."""
    generated = json.loads(edge_file("routes.json").read_text())
    routes = {each["match"].get("path"): each["route"] for each in generated["grpc_routes"][5:]}
    every = public_methods(with_effect=True) | public_methods(with_effect=False)
    for path in every:
        service, name = path.strip("/").split("/")
        is_stream = name.startswith(("Watch", "Stream", "Subscribe", "SendStreaming"))
        kind = kind_of(Method(service, name, bytes, is_stream))
        assert kind is not None
        if path in routes:
            route = routes[path]
            assert (route["cluster"], route["priority"]) == ROUTES[kind], path
        else:
            assert service == A2A_SERVICE and ROUTES[kind] == ROUTES[Kind.OTHERS]
    named = json.dumps(generated["routes"])
    for cluster, priority in ROUTES.values():
        assert f'"cluster": "{cluster}", "priority": "{priority}"' in named


class SlowStore(FaultyStore):
    """A store that is slow to read a task with its workspace."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0
        self.go_on = asyncio.Event()

    async def get_workspace_with_task(
        self, workspace_id: str, task_id: str, org_id: str | None = None
    ) -> tuple[Workspace | None, Task | None]:
        self.reads += 1
        await self.go_on.wait()
        return await super().get_workspace_with_task(workspace_id, task_id, org_id)


async def test_polls_beyond_a_share_are_refused_and_a_cancellation_overtakes_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shares, "SHARES", {**SHARES, Kind.READS: FEW})
    store = SlowStore()
    world = World(store=store)
    world.agents.iteration = CurrentIteration(number=4)
    busy, task = await world.add_busy()
    request = messages.GetCurrentIterationRequest(workspace_id=busy.id, task_id=task.id)
    async with running(world) as server, asyncio.timeout(30):

        async def poll(token: str) -> task_pb2.CurrentIteration:
            return await server.stub.GetCurrentIteration(request, metadata=bearer(token))

        def polls(tokens: Sequence[str]) -> list[asyncio.Task[task_pb2.CurrentIteration]]:
            return [asyncio.create_task(poll(token)) for token in tokens]

        patient = polls(["sk_test", "sk_test", READER])
        await eventually_async(lambda: store.reads == len(patient))
        refused = await server.fails(poll("sk_test"))
        assert refused.slug == "rate_limited" and "Your credential has 2" in refused.message
        assert refused.trailers["retry-after"] == "1"
        await server.stub.CancelTask(
            messages.CancelTaskRequest(workspace_id=busy.id), metadata=bearer()
        )
        store.go_on.set()
        assert {each.number for each in await asyncio.gather(*patient)} == {4}
