"""The tokens of an agent at the real RuntimeService, with clocks that the tests set."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import grpc.aio
import pytest
import structlog
from evershell.agent.v1.runtime_service_pb2 import HeartbeatRequest
from evershell.agent.v1.runtime_service_pb2_grpc import RuntimeServiceStub

from evershell.agents.lease import Lease
from evershell.agents.runtime_client import (
    ControlPlaneClock,
    RuntimeClient,
    RuntimeCredential,
    RuntimeStub,
)
from evershell.agents.session import Session
from evershell.agents.shutdown import AgentEndingError, ExitCode, Shutdown
from evershell.auth.pod_tokens import PodTokens
from evershell.auth.signing_keys import new_key
from evershell.core import workspace_lifecycle
from evershell.core.task import Phase
from evershell.core.workspace import WorkspaceStatus
from tests.support.runtime_tokens import runtime_token
from tests.support.world import World
from tests.unit.agents.conftest import Start, started
from tests.unit.agents.faulty_plane import ControlPlane
from tests.unit.auth.fake_keys import FakeTimer
from tests.wire.api.running import INTERNAL, Failed, Running, bearer, running

MINUTE = 60.0
# A moment at which a minute begins.
NOW = 28_000_000 * MINUTE
HEARTBEAT = INTERNAL + "Heartbeat"


@dataclass
class Side:
    """An agent of a workspace and its control plane, with the clocks of both."""

    world: World
    server: Running
    tokens: PodTokens
    control_plane_clock: FakeTimer
    agent_clock: FakeTimer
    workspace_id: str
    client: RuntimeClient
    clock: ControlPlaneClock
    lease: Lease
    shutdown: Shutdown

    async def beat(self) -> None:
        """Repeats a heartbeat until it is acknowledged or the agent shuts down."""
        async with asyncio.timeout(10):
            await self.client.heartbeat(lambda: ("", Phase.NONE))

    async def fence(self) -> None:
        """Begins a new epoch: the agent counts as lost, and the workspace is resumed."""
        now = self.world.clock()
        await self.world.change(
            self.workspace_id,
            lambda locked: workspace_lifecycle.lose_agent(
                locked, 1, "lost", now, work_stopped=True
            ),
        )
        await self.world.change(
            self.workspace_id, lambda locked: workspace_lifecycle.resume(locked, now)
        )

    async def answer(self, token: str) -> bytes | Failed:
        """Sends a heartbeat with this token. Returns the answer."""
        request = HeartbeatRequest().SerializeToString()
        return await self.server.raw(HEARTBEAT, bearer(token), request)

    async def accepts(self, token: str) -> bool:
        answer = await self.answer(token)
        assert isinstance(answer, bytes) or answer.code is grpc.StatusCode.UNAUTHENTICATED
        return isinstance(answer, bytes)


@pytest.fixture
async def side() -> AsyncIterator[Side]:
    world = World()
    workspace = await world.add(WorkspaceStatus.IDLE)
    control_plane_clock, agent_clock = FakeTimer(), FakeTimer()
    control_plane_clock.now = agent_clock.now = NOW
    tokens = PodTokens(new_key(), control_plane_clock)
    clock = ControlPlaneClock(agent_clock, agent_clock)
    secret = tokens.runtime_secret(workspace.id, workspace.epoch).hex()
    credential = RuntimeCredential(workspace.id, workspace.epoch, secret, clock)
    shutdown, lease, log = Shutdown(), Lease(), structlog.get_logger()
    session = Session(_no_work, shutdown, lambda: None, log)
    async with running(world, pod_tokens=tokens) as server:
        workers: dict[str, RuntimeStub] = {"worker": RuntimeServiceStub(server.channel)}
        client = RuntimeClient(workers, credential, lease, shutdown, session, log)
        yield Side(
            world, server, tokens, control_plane_clock, agent_clock, workspace.id, client, clock,
            lease, shutdown,
        )  # fmt: skip


async def _no_work(_: object) -> None:
    raise AssertionError("no task was assigned")


async def test_each_minute_has_a_token_of_its_own(side: Side) -> None:
    seen = set()
    for minute in range(3):
        side.control_plane_clock.now = side.agent_clock.now = NOW + minute * MINUTE
        await side.beat()
        seen.add(runtime_token(side.tokens, side.workspace_id, 1, side.agent_clock.now))
    assert len(seen) == 3
    # The clock was never corrected, so no token was refused.
    assert side.clock() == side.agent_clock()


@pytest.mark.parametrize("seconds", [-86_400.0, -3 * MINUTE, 3 * MINUTE, 3_600.0, 10 * 86_400.0])
async def test_an_agent_recovers_from_an_expired_token(side: Side, seconds: float) -> None:
    """The agent still has its lease, but its token has expired.

    For example, the machine slept, the process was frozen after it made the token, or a clock was
    set.
    """
    await side.beat()
    side.control_plane_clock.now = NOW + seconds
    await side.beat()
    assert not side.shutdown.is_begun
    assert side.lease.remaining_seconds is not None
    # The agent also uses the control plane's time to check the signals that it receives.
    assert side.clock() == NOW + seconds
    # The control plane's clock is set back again.
    side.control_plane_clock.now = NOW
    await side.beat()
    assert side.clock() == NOW


async def test_an_agent_with_a_wrong_clock_registers(side: Side) -> None:
    side.agent_clock.now = NOW - 86_400
    await side.client.register("127.0.0.1:1", 1)
    assert (await side.world.workspace(side.workspace_id)).agent_address == "127.0.0.1:1"


@pytest.mark.parametrize("ahead_seconds", [-3_600.0, 3_600.0])
async def test_an_agent_follows_the_clock_of_the_control_plane_in_both_directions(
    control_plane: ControlPlane, start: Start, ahead_seconds: float
) -> None:
    control_plane.ahead_seconds = ahead_seconds
    await started(control_plane, start)
    assert control_plane.calls[:2] == ["Register", "Register"]
    await control_plane.run_task("t1", "sleep 60")
    await control_plane.reaches(lambda: control_plane.kinds("t1"))
    assert await control_plane.cancel("t1", force_after_seconds=0)
    await control_plane.reaches(lambda: control_plane.end("t1"))


async def test_a_fenced_agent_with_an_expired_token_ends_as_fenced(side: Side) -> None:
    """Another agent has taken over while this agent was frozen."""
    await side.fence()
    side.control_plane_clock.now = NOW + 3_600
    with pytest.raises(AgentEndingError):
        await side.beat()
    assert side.shutdown.code is ExitCode.FENCED


async def test_an_agent_of_another_key_ends_although_its_token_has_expired(side: Side) -> None:
    """The error does not contain the control plane's time, so the agent ends without a retry."""
    rotated = PodTokens(new_key(), side.control_plane_clock)
    side.control_plane_clock.now = NOW + 3_600
    async with running(side.world, pod_tokens=rotated) as server:
        side.client._stubs[0] = RuntimeServiceStub(server.channel)
        with pytest.raises(AgentEndingError):
            await side.beat()
    assert side.shutdown.code is ExitCode.UNAUTHORIZED


async def test_a_replayed_token_is_refused_after_its_window(side: Side) -> None:
    captured = runtime_token(side.tokens, side.workspace_id, 1, NOW)
    assert await side.accepts(captured)
    side.control_plane_clock.now = NOW + 2 * MINUTE - 0.1
    assert await side.accepts(captured)
    side.control_plane_clock.now = NOW + 2 * MINUTE
    assert not await side.accepts(captured)
    # A heartbeat that the agent sends does not make the captured token valid again.
    await side.beat()
    assert not await side.accepts(captured)


async def test_a_token_of_another_workspace_or_epoch_does_not_act_for_this_one(side: Side) -> None:
    """The secret of another agent cannot be used to make a token of this agent."""
    secrets = [("ws_other", 1), (side.workspace_id, 2), (f"{side.workspace_id} 1", 1)]
    good = runtime_token(side.tokens, side.workspace_id, 1, NOW)
    names = good.rpartition(".")[0]
    for workspace_id, epoch in secrets:
        code = runtime_token(side.tokens, workspace_id, epoch, NOW).rpartition(".")[2]
        assert not await side.accepts(f"{names}.{code}")
    assert await side.accepts(good)


async def test_the_token_of_an_epoch_that_is_over_is_fenced(side: Side) -> None:
    await side.fence()
    with pytest.raises(AgentEndingError):
        await side.beat()
    assert side.shutdown.code is ExitCode.FENCED


async def test_a_signal_token_does_not_open_the_runtime_service(side: Side) -> None:
    signal = side.tokens.signal_token(side.workspace_id, 1)
    minute = int(NOW // MINUTE)
    assert not await side.accepts(signal)
    assert not await side.accepts(f"{side.workspace_id}.1.{minute}.{signal}")


async def test_only_an_authentic_token_is_told_the_time(side: Side) -> None:
    side.control_plane_clock.now = NOW + 3_600
    good = runtime_token(side.tokens, side.workspace_id, 1, NOW)
    answer = await side.answer(good)
    assert isinstance(answer, Failed)
    assert answer.trailers["x-evershell-time"] == str(int(NOW) + 3_600)
    forged = await side.answer(good[:-1] + ("1" if good[-1] == "0" else "0"))
    assert isinstance(forged, Failed)
    assert "x-evershell-time" not in forged.trailers
