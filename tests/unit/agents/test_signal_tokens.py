"""How an agent, on a loopback port, checks the signal tokens of the control plane."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
import grpc.aio
import pytest
import structlog
from evershell.agent.v1.agent_service_pb2 import (
    Assignment,
    GetCurrentIterationRequest,
    Signal,
)
from evershell.agent.v1.agent_service_pb2_grpc import (
    AgentServiceStub,
    add_AgentServiceServicer_to_server,
)

from evershell.agents.service import AgentService, TokenVerifier, acknowledge
from evershell.agents.session import Session
from evershell.agents.shutdown import ExitCode, Shutdown
from evershell.auth.pod_tokens import PodTokens
from evershell.auth.signing_keys import new_key
from evershell.core.errors import Failure
from evershell.pod.signal_stream import NotAcknowledgedError, SignalStream
from tests.support.runtime_tokens import runtime_token
from tests.unit.agents.conftest import Start

WORKSPACE_ID, EPOCH = "ws_1", 3
KEY = new_key()
MINUTE = 60.0
# A moment at which a minute begins.
NOW = 28_000_000 * MINUTE


@dataclass
class Clock:
    """A clock that a test sets."""

    now: float = NOW

    def __call__(self) -> float:
        return self.now


@dataclass
class SignalledAgent:
    """An agent and the control plane's tokens, with the clocks of both sides."""

    agent_clock: Clock
    control_plane_clock: Clock
    tokens: PodTokens
    channel: grpc.aio.Channel

    async def accepts(self, authorization: str | None) -> bool:
        """Whether a call with this `authorization` is accepted. None sends no `authorization`."""
        metadata = () if authorization is None else (("authorization", authorization),)
        stub: Any = AgentServiceStub(self.channel)
        call = stub.Signals(metadata=metadata)
        await call.done_writing()
        code = await call.code()
        read = stub.GetCurrentIteration(GetCurrentIterationRequest(task_id="t1"), metadata=metadata)
        assert await read.code() is code
        assert code in (grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED)
        return code is grpc.StatusCode.OK

    def stream(self) -> SignalStream:
        return SignalStream(self.channel, self.token().removeprefix("Bearer "))

    def token(self, workspace_id: str = WORKSPACE_ID, epoch: int = EPOCH) -> str:
        """Returns the `authorization` that the control plane would send now."""
        return authorization(self.tokens, workspace_id, epoch)


def authorization(tokens: PodTokens, workspace_id: str = WORKSPACE_ID, epoch: int = EPOCH) -> str:
    return f"Bearer {tokens.signal_token(workspace_id, epoch)}"


@pytest.fixture
async def agent() -> AsyncIterator[SignalledAgent]:
    agent_clock, control_plane_clock = Clock(), Clock()
    tokens = PodTokens(KEY, control_plane_clock)
    verifier = TokenVerifier(tokens.signal_secret(WORKSPACE_ID, EPOCH).hex(), agent_clock)
    session = Session(no_work, Shutdown(), lambda: None, structlog.get_logger())
    server = grpc.aio.server()
    service = AgentService(verifier, partial(acknowledge, session), session)
    add_AgentServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield SignalledAgent(agent_clock, control_plane_clock, tokens, channel)
        # No call of a test has started a task.
        assert session.task is None
    await server.stop(grace=None)


async def no_work(task: object) -> None:
    raise AssertionError("no task has been started")


async def test_the_token_of_this_agent_and_minute_is_accepted(agent: SignalledAgent) -> None:
    token = agent.token()
    assert await agent.accepts(token)
    assert await agent.accepts(token)


async def test_every_worker_sends_the_same_token(
    agent: SignalledAgent,
) -> None:
    """Each worker derives the token from the signing key, so any worker can signal any agent."""
    assert await agent.accepts(authorization(PodTokens(KEY, agent.control_plane_clock)))


async def test_the_token_of_another_workspace_is_refused(agent: SignalledAgent) -> None:
    assert not await agent.accepts(agent.token("ws_2"))


@pytest.mark.parametrize("epoch", [EPOCH - 1, EPOCH + 1])
async def test_the_token_of_another_epoch_is_refused(agent: SignalledAgent, epoch: int) -> None:
    assert not await agent.accepts(agent.token(epoch=epoch))


async def test_workspace_and_epoch_cannot_be_swapped(agent: SignalledAgent) -> None:
    for workspace_id, epoch in [("ws_", 13), ("ws_1 3", 0), ("3", 1), ("ws_13", 3), ("", EPOCH)]:
        assert not await agent.accepts(agent.token(workspace_id, epoch))


@pytest.mark.parametrize(
    ("skew_seconds", "is_accepted"),
    [
        (-120.0, False),
        (-60.1, False),
        (-60.0, True),
        (0.0, True),
        (59.9, True),
        (60.0, True),
        (119.9, True),
        (120.0, False),
        (600.0, False),
    ],
)
async def test_the_clocks_may_differ_by_a_minute(
    agent: SignalledAgent, skew_seconds: float, is_accepted: bool
) -> None:
    """The token is for the minute that begins now according to the control plane's clock."""
    agent.agent_clock.now = NOW + skew_seconds
    assert await agent.accepts(agent.token()) is is_accepted


async def test_a_token_is_refused_after_its_window(agent: SignalledAgent) -> None:
    token = agent.token()
    assert await agent.accepts(token)
    agent.agent_clock.now = NOW + 2 * MINUTE - 0.1
    assert await agent.accepts(token)
    agent.agent_clock.now = NOW + 2 * MINUTE
    assert not await agent.accepts(token)
    agent.control_plane_clock.now = NOW + 2 * MINUTE
    assert agent.token() != token
    assert await agent.accepts(agent.token())


async def test_each_signal_of_a_stream_needs_a_token(agent: SignalledAgent) -> None:
    good = agent.tokens.signal_token(WORKSPACE_ID, EPOCH)
    start = Assignment(task_id="t1")
    for bad in ("", agent.tokens.signal_token("ws_2", EPOCH)):
        stream = agent.stream()
        assert await stream.send(Signal(token=good))
        with pytest.raises(NotAcknowledgedError) as refused:
            await stream.send(Signal(token=bad, start_task=start))
        assert refused.value.code is grpc.StatusCode.UNAUTHENTICATED


async def test_a_stream_outlasts_the_token_that_opened_it(agent: SignalledAgent) -> None:
    stream = agent.stream()
    old = agent.tokens.signal_token(WORKSPACE_ID, EPOCH)
    assert await stream.send(Signal(token=old))
    agent.agent_clock.now = agent.control_plane_clock.now = NOW + 10 * MINUTE
    assert await stream.send(Signal(token=agent.tokens.signal_token(WORKSPACE_ID, EPOCH)))
    with pytest.raises(NotAcknowledgedError):
        await stream.send(Signal(token=old, start_task=Assignment(task_id="t1")))


async def test_a_token_of_the_future_is_refused_until_its_window(agent: SignalledAgent) -> None:
    agent.control_plane_clock.now = NOW + 5 * MINUTE
    token = agent.token()
    assert not await agent.accepts(token)
    agent.agent_clock.now = NOW + 4 * MINUTE
    assert await agent.accepts(token)


async def test_a_malformed_token_is_refused(agent: SignalledAgent) -> None:
    good = agent.token()
    scheme, _, token = good.partition(" ")
    tokens = ["", "nonsense", token[:-1], token + "0", token[::-1], token.upper(), f"{token} "]
    tokens += ["0" * len(token), "a.b.c", "eyJhbGciOiJub25lIn0.e30.", "x" * 4_000]
    values = [f"{scheme} {bad}" for bad in tokens if bad != token]
    values += ["", scheme, token, f"Basic {token}", f"{scheme}{token}", f"{scheme}  {token}"]
    for value in [None, *values]:
        assert not await agent.accepts(value), value
    assert await agent.accepts(good)


async def test_a_runtime_token_is_no_signal_token(agent: SignalledAgent) -> None:
    token = runtime_token(agent.tokens, WORKSPACE_ID, EPOCH, NOW)
    # Without the names in front, a runtime token has the format of a signal token.
    for bad in (token, token.rpartition(".")[2]):
        assert not await agent.accepts(f"Bearer {bad}")


async def test_a_secret_is_no_signal_token(agent: SignalledAgent) -> None:
    for secret in (agent.tokens.signal_secret, agent.tokens.runtime_secret):
        assert not await agent.accepts(f"Bearer {secret(WORKSPACE_ID, EPOCH).hex()}")


async def test_a_new_signing_key_ends_what_the_old_one_has_authorized(
    agent: SignalledAgent,
) -> None:
    """After a change of the signing key, each side refuses the tokens of the other side."""
    rotated = PodTokens(new_key(), agent.control_plane_clock)
    assert not await agent.accepts(authorization(rotated))
    with pytest.raises(Failure) as refused:
        rotated.identify(runtime_token(agent.tokens, WORKSPACE_ID, EPOCH, NOW))
    assert refused.value.slug == "unauthenticated"
    # An error with the time would make the agent try again.
    assert "unix_seconds" not in refused.value.details


@pytest.mark.parametrize("name", ["signal_secret", "runtime_secret"])
@pytest.mark.parametrize("secret", ["", "00", "0" * 62, "0" * 66, "no secret"])
async def test_an_agent_without_its_secrets_exits_at_the_start(
    start: Start, name: str, secret: str
) -> None:
    assert await start([], **{name: secret}) is ExitCode.BAD_SPEC
