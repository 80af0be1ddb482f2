"""The agent client over gRPC: its signals, streams, attempts and tokens.

tests/contracts tests what the client promises to the core.
"""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterable
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from evershell.agent.v1.agent_service_pb2 import (
    Acknowledgement,
    CurrentIteration,
    Signal,
)
from evershell.workspace.v1 import task_pb2
from evershell.workspace.v1.task_pb2 import RunningCall

from evershell.auth.pod_tokens import PodTokens
from evershell.auth.signing_keys import new_key, with_new_key
from evershell.core import deadline, trace
from evershell.core.errors import AgentUnreachableError
from evershell.core.trace import TraceContext
from evershell.fleet import agent_client
from evershell.fleet.agent_client import AgentClient
from evershell.pod.tls import Connector
from tests.support.waiting import eventually_async
from tests.support.world import NOW
from tests.unit.fleet.fake_agent import (
    TASK,
    TOKENS,
    Context,
    FakeAgent,
    answer_at_once,
    cancel,
    never,
    unreachable,
    workspace_at,
)


@pytest.mark.usefixtures("patient")
async def test_a_signal_carries_the_intent_and_a_token_of_the_workspace(
    client: AgentClient, agent: FakeAgent
) -> None:
    workspace = workspace_at(agent.address)
    assert await client.cancel_task(workspace, TASK) is True
    (signal,) = agent.signals
    assert signal.cancel_task.task_id == TASK.id
    assert signal.cancel_task.cancellation.reason == "enough"
    assert signal.cancel_task.cancellation.force_after_ms == 7_000
    assert signal.token == TOKENS.signal_token(workspace.id, 3)
    assert agent.opened == [f"Bearer {signal.token}"]


@pytest.mark.usefixtures("patient")
async def test_a_task_is_delivered_with_an_intent_that_was_recorded_before(
    client: AgentClient, agent: FakeAgent
) -> None:
    await client.start_task(workspace_at(agent.address), TASK)
    (signal,) = agent.signals
    task = signal.start_task
    assert (task.task_id, task.description, task.max_iterations) == (TASK.id, "true", 1_000)
    assert task.cancellation.reason == "enough"


@pytest.mark.usefixtures("patient")
async def test_all_signals_to_an_agent_share_a_stream(
    client: AgentClient, agent: FakeAgent
) -> None:
    await client.start_task(workspace_at(agent.address), TASK)
    for _ in range(3):
        assert await cancel(client, agent.address)
    assert len(agent.opened) == 1
    ids = [signal.id for signal in agent.signals]
    assert len(set(ids)) == len(ids)


@pytest.mark.usefixtures("patient")
async def test_each_signal_has_its_own_acknowledgement(
    client: AgentClient, agent: FakeAgent
) -> None:
    """Signals of several tasks wait on one stream. The agent knows some of the tasks."""
    agent.known = {"task_1", "task_3"}
    all_sent = asyncio.Event()

    async def wait(number: int, context: Context) -> None:
        await all_sent.wait()

    agent.before = wait
    calls = [asyncio.create_task(cancel(client, agent.address, f"task_{n}")) for n in range(5)]
    await eventually_async(lambda: agent.signals)
    # The first caller leaves, but the acknowledgement of its signal still arrives first.
    calls[0].cancel()
    all_sent.set()
    assert await asyncio.gather(*calls[1:]) == [True, False, True, False]


@pytest.mark.usefixtures("patient")
async def test_a_failed_attempt_is_retried_within_the_signal(
    client: AgentClient, agent: FakeAgent
) -> None:
    async def fail_once(number: int, context: Context) -> None:
        if number == 1:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")

    agent.before = fail_once
    assert await cancel(client, agent.address) is True
    assert len(agent.signals) == len(agent.opened) == 2


async def test_a_silent_stream_is_given_up_for_another_connection(
    client: AgentClient, agent: FakeAgent
) -> None:
    async def be_silent(number: int, context: Context) -> None:
        if context.peer() == agent.peers[0]:
            await never(number, context)

    agent.before = be_silent
    assert await cancel(client, agent.address)
    assert len(set(agent.peers)) > 1


@pytest.mark.parametrize(
    "extra", [Acknowledgement(id=9), Acknowledgement(id=1, task_id="x" * 300_000)]
)
async def test_a_stream_with_more_than_it_was_asked_for_is_ended(
    client: AgentClient, agent: FakeAgent, extra: Acknowledgement
) -> None:
    """An agent must not be able to keep a worker busy forever."""
    ended = asyncio.Event()

    def flood(signal: Signal) -> Iterable[Acknowledgement]:
        try:
            yield Acknowledgement(id=signal.id, known=True)
            while True:
                yield extra
        finally:
            ended.set()

    agent.answers = flood
    assert await cancel(client, agent.address)
    async with asyncio.timeout(30):
        await ended.wait()
    agent.answers = None
    assert await cancel(client, agent.address)


@pytest.mark.usefixtures("one_attempt")
async def test_bytes_that_are_no_acknowledgement_are_not_believed(client: AgentClient) -> None:
    async def signals(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        async for _ in requests:
            yield b"\xff\xff\xff"

    server = grpc.aio.server()
    handler: Any = grpc.stream_stream_rpc_method_handler(signals)
    name = "evershell.agent.v1.AgentService"
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(name, {"Signals": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await unreachable(client, f"127.0.0.1:{port}")
    await server.stop(0)


@pytest.mark.usefixtures("patient")
async def test_an_agent_of_an_earlier_version_reports_no_calls(
    client: AgentClient, agent: FakeAgent
) -> None:
    workspace = workspace_at(agent.address)
    assert await client.current_iteration(workspace, TASK) is None
    # Signals use the same connection as reads, and still reach the agent.
    assert await cancel(client, agent.address)


@pytest.mark.usefixtures("patient")
async def test_what_an_agent_reports_is_bounded(client: AgentClient, agent: FakeAgent) -> None:
    endless = RunningCall(
        phase=task_pb2.Task.tool_call,
        name="é" * 1_000,
        arguments="é" * 10_000,
        duration_ms=-5,
        output="é" * 10_000 + "end",
    )
    unknown: Any = 99
    model_call = RunningCall(phase=task_pb2.Task.model_call)
    lies = [RunningCall(phase=unknown), RunningCall(), *[model_call] * 50]
    agent.iteration = CurrentIteration(number=-7, calls=[endless, *lies])
    seen = await client.current_iteration(workspace_at(agent.address), TASK)
    assert seen is not None and seen.number == 0
    cut, *others = seen.calls
    assert (cut.phase, cut.name, cut.arguments) == ("tool_call", "é" * 128, "é" * 2_048)
    assert (cut.duration_ms, cut.output) == (0, "é" * 4_094 + "end")
    # Only the first 16 calls count, and two of them have no phase.
    assert [other.phase for other in others] == ["model_call"] * 13


@pytest.mark.usefixtures("patient")
async def test_a_channel_is_closed_when_the_reads_on_it_have_ended(agent: FakeAgent) -> None:
    """A channel stays open for its reads after it was given up or another agent took its place."""
    go_on = asyncio.Event()

    async def wait(number: int, context: Context) -> None:
        await go_on.wait()

    agent.iteration, agent.before_read = CurrentIteration(number=4), wait
    other = FakeAgent()
    await other.listen()
    client = AgentClient(TOKENS, lambda: NOW, max_streams=1)
    read = asyncio.create_task(client.current_iteration(workspace_at(agent.address), TASK))
    await eventually_async(lambda: agent.reads)
    assert await cancel(client, other.address)
    go_on.set()
    await asyncio.wait({read})
    await client.aclose()
    await other.stop()
    assert not read.cancelled()
    answer = read.result()
    assert answer is not None and (answer.number, agent.reads) == (4, 1)


def report(size: int) -> bytes:
    return CurrentIteration(calls=[RunningCall(output="x" * size)]).SerializeToString()


@pytest.mark.usefixtures("one_attempt")
@pytest.mark.parametrize(
    ("answer", "compression"),
    [
        (report(300_000), grpc.Compression.NoCompression),
        # A few compressed bytes of an agent must not fill the memory of a worker.
        (report(100_000), grpc.Compression.Gzip),
        (b"\xff\xff\xff", grpc.Compression.NoCompression),
    ],
)
async def test_a_report_that_is_too_large_or_cannot_be_read_is_not_taken(
    client: AgentClient, answer: bytes, compression: grpc.Compression
) -> None:
    asked = asyncio.Event()

    async def lie(request: bytes, context: Context) -> bytes:
        asked.set()
        return answer

    server = grpc.aio.server(compression=compression)
    handler: Any = grpc.unary_unary_rpc_method_handler(lie)
    name = "evershell.agent.v1.AgentService"
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(name, {"GetCurrentIteration": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        with pytest.raises(AgentUnreachableError):
            await client.current_iteration(workspace_at(f"127.0.0.1:{port}"), TASK)
    finally:
        await server.stop(0)
    assert asked.is_set()


async def test_an_agent_that_does_not_answer_is_given_up(
    client: AgentClient, agent: FakeAgent
) -> None:
    agent.before = never
    # More than ten times as long as the call should take.
    async with asyncio.timeout(18):
        await unreachable(client, agent.address)
    # The next signal gets a new stream.
    agent.before = answer_at_once
    assert await cancel(client, agent.address)


@pytest.mark.usefixtures("patient")
async def test_a_signal_ends_before_the_deadline_of_its_caller(
    client: AgentClient, agent: FakeAgent
) -> None:
    agent.before = never
    deadline.begin(1.0)
    await unreachable(client, agent.address)


def arrived(seconds_ago: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the current call look as if it had arrived `seconds_ago` seconds ago."""
    at = time.monotonic() - seconds_ago
    with monkeypatch.context() as earlier:
        earlier.setattr(deadline, "time", SimpleNamespace(monotonic=lambda: at))
        deadline.begin(None)


@pytest.mark.usefixtures("patient")
async def test_the_time_that_recording_took_is_part_of_the_budget(
    client: AgentClient, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent.before = never
    arrived(agent_client.SIGNAL_BUDGET_SECONDS - 1, monkeypatch)
    await unreachable(client, agent.address)


@pytest.mark.usefixtures("patient")
async def test_a_signal_after_a_slow_recording_has_an_attempt(
    client: AgentClient, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived(2 * agent_client.SIGNAL_BUDGET_SECONDS, monkeypatch)
    monkeypatch.setattr(agent_client, "_LEAST_SECONDS", 60.0)
    assert await cancel(client, agent.address)


@pytest.mark.usefixtures("patient")
async def test_a_signal_without_time_for_an_attempt_leaves_the_stream_to_the_next_one(
    client: AgentClient, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await cancel(client, agent.address)
    acknowledging = asyncio.Event()

    async def wait(number: int, context: Context) -> None:
        await acknowledging.wait()

    agent.before = wait
    arrived(2 * agent_client.SIGNAL_BUDGET_SECONDS, monkeypatch)
    await unreachable(client, agent.address)
    acknowledging.set()
    deadline.begin(None)
    assert await cancel(client, agent.address)
    assert len(agent.opened) == 1


@pytest.mark.usefixtures("patient")
async def test_a_task_is_delivered_with_the_whole_budget(
    client: AgentClient, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow database must not shorten the budget: a task that is not delivered in time fails."""

    async def be_slow(number: int, context: Context) -> None:
        await asyncio.sleep(2 * agent_client._LEAST_SECONDS)

    agent.before = be_slow
    arrived(2 * agent_client.SIGNAL_BUDGET_SECONDS, monkeypatch)
    await client.start_task(workspace_at(agent.address), TASK)


async def test_a_slow_agent_has_the_rest_of_the_budget_on_another_connection(
    client: AgentClient, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_client, "SIGNAL_BUDGET_SECONDS", 60.0)
    monkeypatch.setattr(agent_client, "_ATTEMPT_SECONDS", 0.05)

    async def be_slow(number: int, context: Context) -> None:
        await asyncio.sleep(10 * agent_client._ATTEMPT_SECONDS)

    agent.before = be_slow
    assert await cancel(client, agent.address)
    assert len(agent.signals) <= 2


@pytest.mark.usefixtures("patient")
async def test_an_agent_of_the_previous_signing_key_is_signalled_with_its_tokens(
    agent: FakeAgent,
) -> None:
    previous = new_key()
    tokens = PodTokens(with_new_key(previous), lambda: 1_000.0)
    workspace = workspace_at(agent.address)
    accepted = PodTokens(previous, lambda: 1_000.0).signal_token(workspace.id, 3)

    async def verify(number: int, context: Context) -> None:
        if agent.signals[-1].token != accepted:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "another key")

    agent.before = verify
    client = AgentClient(tokens, lambda: NOW)
    assert await client.cancel_task(workspace, TASK) is True
    assert len(agent.opened) == 2
    # The client remembers which signing key this agent accepts.
    assert await client.cancel_task(workspace, TASK) is True
    assert len(agent.opened) == 2
    await client.aclose()


async def test_an_agent_that_restarts_during_a_signal_is_reached(
    client: AgentClient, agent: FakeAgent
) -> None:
    assert await cancel(client, agent.address) is True
    await agent.stop()
    call = asyncio.create_task(cancel(client, agent.address))
    await asyncio.sleep(0)
    await agent.listen(agent.address)
    assert await call is True


async def test_the_channel_to_an_agent_that_dies_before_it_answers_is_closed(
    client: AgentClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen agent is signalled, and then killed while its channel is being closed."""
    channels: list[grpc.aio.Channel] = []
    connect = Connector.open

    def recorded(*arguments: Any) -> grpc.aio.Channel:
        channels.append(connect(*arguments))
        return channels[-1]

    monkeypatch.setattr(Connector, "open", recorded)
    # The kernel accepts connections for the frozen agent.
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        deadline.begin(0.3)
        await unreachable(client, f"127.0.0.1:{frozen.getsockname()[1]}")
    await client.aclose()
    states = {channel.get_state() for channel in channels}
    assert states == {grpc.ChannelConnectivity.SHUTDOWN}


async def test_no_signal_is_lost_when_the_agent_ends_old_streams(client: AgentClient) -> None:
    agent = FakeAgent()
    age = (("grpc.max_connection_age_ms", 100), ("grpc.max_connection_age_grace_ms", 20))
    await agent.listen(options=age)
    async with asyncio.timeout(60):
        while len(agent.opened) < 4:
            assert await cancel(client, agent.address)
    await agent.stop()


def test_the_time_limit_of_a_signal_is_below_two_seconds() -> None:
    assert agent_client.SIGNAL_BUDGET_SECONDS < 2


@pytest.mark.usefixtures("patient")
async def test_a_signal_carries_the_trace_that_it_is_part_of(
    agent: FakeAgent, client: AgentClient
) -> None:
    await client.start_task(workspace_at(agent.address), TASK)
    with trace.within(TraceContext("a" * 32, "b" * 16)):
        await client.start_task(workspace_at(agent.address), TASK)
        await client.cancel_task(workspace_at(agent.address), TASK)
    traceparents = [signal.traceparent for signal in agent.signals]
    assert traceparents == ["", *[f"00-{'a' * 32}-{'b' * 16}-01"] * 2]
