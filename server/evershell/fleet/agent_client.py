"""The gRPC client with which the control plane signals agents and reads their running calls.

It keeps a stream open to each agent that it has signalled, so that a signal needs one message
instead of a new call. One time budget covers recording a cancellation and all attempts to signal
the agent. So a caller waits at most 2 s for an agent that has ended, is frozen or is slow.
"""

import asyncio
import itertools
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import grpc.aio
import structlog
from evershell.agent.v1 import agent_service_pb2
from evershell.agent.v1.agent_service_pb2 import (
    Acknowledgement,
    CancelTask,
    GetCurrentIterationRequest,
    Signal,
)
from evershell.agent.v1.agent_service_pb2_grpc import AgentServiceStub

from evershell.auth.pod_tokens import PodTokens
from evershell.backoff import backoff
from evershell.core import deadline, trace
from evershell.core.errors import AgentUnreachableError
from evershell.core.ports import Clock
from evershell.core.task import CurrentIteration, Task
from evershell.core.workspace import Workspace
from evershell.fleet.agent_reads import AgentReads
from evershell.pod.messages import (
    cancellation_fields,
    decode_current_iteration,
    encode_assignment,
)
from evershell.pod.signal_stream import NotAcknowledgedError, SignalStream
from evershell.pod.tls import Connector, TlsIdentity, agent_name

if TYPE_CHECKING:
    from evershell.agent.v1.agent_service_pb2_grpc import AgentServiceAsyncStub

log = structlog.get_logger()

# The time limit for all attempts to send a signal. An earlier deadline of the caller shortens it.
# For a cancellation or a read, the time begins when the call arrives. The limit is shorter than the
# 2 s that the contract promises, because timers fire late in a busy process.
SIGNAL_BUDGET_SECONDS = 1.5
# The minimum time for the attempts, even if recording the cancellation has used up the budget. A
# fast agent can still answer in this time.
_LEAST_SECONDS = 0.2
# The time limit of an attempt. After an attempt has reached this limit, the next one uses a new
# connection, because the network may have silently dropped the old connection. It may take the rest
# of the budget, because the agent may just be slow.
_ATTEMPT_SECONDS = 0.5
# Each stream needs a file descriptor, and many systems allow a process 1,024 by default.
MAX_STREAMS = 500
_OPTIONS = (
    # Agents are on the local network, so a proxy from the environment is not used.
    ("grpc.enable_http_proxy", 0),
    # Enough for the largest answer to GetCurrentIteration: 16 running calls with 12 KiB of text
    # each (pod/messages.py). Acknowledgements are smaller.
    ("grpc.max_receive_message_length", 256 * 1024),
    # Off, because a compressed message could grow a thousandfold before its size is checked.
    ("grpc.per_message_decompression", 0),
    # Gives a new channel its own connection, even while the previous channel is being closed.
    ("grpc.use_local_subchannel_pool", 1),
    # gRPC waits 1 s or more by default. The budget would then leave no time to reconnect to an
    # agent that has recovered.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)

# The address (host:port) and the name of the agent. The address is not enough: another agent may
# use it later, and an agent may register the address of another agent.
Key: TypeAlias = tuple[str, str]
# A function that makes a new signal for each attempt, because a signal says how much time is left.
NewSignal: TypeAlias = Callable[[], Signal]
Reply = TypeVar("Reply")


class _Agent:
    """The channel to an agent, and the stream on it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._stream: SignalStream | None = None

    @property
    def is_signalled(self) -> bool:
        """Whether the channel has been used for a signal."""
        return self._stream is not None

    async def send(self, signal: Signal) -> Acknowledgement:
        """Sends the signal on the stream.

        Opens a stream if there is none or the last one has ended. Raises NotAcknowledgedError.
        """
        if self._stream is None or self._stream.is_over:
            self._stream = SignalStream(self._channel, signal.token)
        return await self._stream.send(signal)

    async def current_iteration(self, token: str, task_id: str) -> CurrentIteration | None:
        """Asks the agent for its running calls. Returns None if it does not report them.

        Raises NotAcknowledgedError.
        """
        stub: AgentServiceAsyncStub = AgentServiceStub(self._channel)
        try:
            answer = await stub.GetCurrentIteration(
                GetCurrentIterationRequest(task_id=task_id),
                metadata=(("authorization", f"Bearer {token}"),),
            )
        except grpc.aio.AioRpcError as error:
            code = error.code()
            if code is grpc.StatusCode.UNIMPLEMENTED:
                return None
            raise NotAcknowledgedError(error.details() or code.name, code) from None
        # gRPC returns None for bytes that cannot be parsed.
        if not isinstance(answer, agent_service_pb2.CurrentIteration):
            raise NotAcknowledgedError("it does not follow the protocol")
        return decode_current_iteration(answer)

    async def close(self) -> None:
        """Closes the channel. Signals and reads in flight may use the rest of their budget."""
        if self._stream is not None:
            await self._stream.close(SIGNAL_BUDGET_SECONDS)
        # The grace period is necessary: without one, gRPC raises CancelledError in the callers of
        # the reads.
        await self._channel.close(SIGNAL_BUDGET_SECONDS)


class AgentClient:
    """Implements ports.Agents over gRPC.

    Keeps streams open to at most `max_streams` agents: the agents that were signalled last.
    """

    def __init__(
        self,
        pod_tokens: PodTokens,
        clock: Clock,
        tls: TlsIdentity | None = None,
        max_streams: int = MAX_STREAMS,
    ) -> None:
        """Without `tls`, agents are signalled in plain text."""
        self._pod_tokens = pod_tokens
        self._clock = clock
        self._connector = Connector(tls)
        self._max_streams = max_streams
        # Ordered by the time of the last signal. Agents that were only read come first.
        self._agents: OrderedDict[Key, _Agent] = OrderedDict()
        self._reads: AgentReads[Key, CurrentIteration | None] = AgentReads()
        self._closing: set[asyncio.Task[None]] = set()

    async def start_task(self, workspace: Workspace, task: Task) -> None:
        acknowledged = await self._signal(
            workspace,
            lambda: Signal(start_task=encode_assignment(task, self._clock())),
            deadline.bounded(SIGNAL_BUDGET_SECONDS),
        )
        if not acknowledged.known:
            # The agent still works on another task, although the database has assigned it this one.
            raise AgentUnreachableError(f"the agent of {workspace.id} does not take {task.id}")

    async def cancel_task(self, workspace: Workspace, task: Task) -> bool:
        acknowledged = await self._signal(
            workspace,
            lambda: Signal(
                cancel_task=CancelTask(
                    task_id=task.id, cancellation=cancellation_fields(task, self._clock())
                )
            ),
            deadline.left_of_call(SIGNAL_BUDGET_SECONDS, _LEAST_SECONDS),
        )
        return acknowledged.known

    async def current_iteration(self, workspace: Workspace, task: Task) -> CurrentIteration | None:
        key = self._key(workspace)
        try:
            return await self._reads.read(
                key,
                task.id,
                lambda: self._read(workspace, key, task.id),
                deadline.left_of_call(SIGNAL_BUDGET_SECONDS, _LEAST_SECONDS),
            )
        except NotAcknowledgedError as error:
            raise AgentUnreachableError(f"the agent at {key[0]}: {error}") from None

    async def aclose(self) -> None:
        """Ends the reads and closes every channel.

        Signals in flight may use the rest of their budget.
        """
        await self._reads.aclose()
        for key in list(self._agents):
            self._forget(key)
        await asyncio.gather(*self._closing)

    def _key(self, workspace: Workspace) -> Key:
        """The key of the agent. Raises AgentUnreachableError if the agent has not registered."""
        address = workspace.agent_address
        if address is None:
            raise AgentUnreachableError(f"the agent of {workspace.id} has not registered")
        return address, agent_name(workspace.id, workspace.epoch)

    async def _signal(
        self, workspace: Workspace, new_signal: NewSignal, seconds: float
    ) -> Acknowledgement:
        """Tries to send the signal until an attempt succeeds or the time has run out.

        Raises AgentUnreachableError.
        """

        async def send(agent: _Agent, token: str) -> Acknowledgement:
            signal = new_signal()
            signal.token = token
            if (context := trace.current()) is not None:
                signal.traceparent = context.traceparent
            return await agent.send(signal)

        key = self._key(workspace)
        until = time.monotonic() + seconds
        longest_attempt = _ATTEMPT_SECONDS
        for failures in itertools.count(1):
            agent = self._agent(key, is_signal=True)
            attempt_seconds = min(longest_attempt, max(0.0, until - time.monotonic()))
            try:
                async with asyncio.timeout(attempt_seconds):
                    acknowledged = await self._authenticated(workspace, agent, send)
            except TimeoutError:
                reason = "it does not acknowledge"
                longest_attempt = math.inf
                # After an attempt shorter than _ATTEMPT_SECONDS, the connection is kept: the agent
                # may just be slow.
                is_lost = attempt_seconds >= _ATTEMPT_SECONDS
                if is_lost:
                    self._forget_if_current(key, agent)
            except NotAcknowledgedError as error:
                reason, is_lost = str(error), True
            else:
                self._reads.answered(key)
                return acknowledged
            pause = backoff(failures, first=0.05, longest=0.3)
            if time.monotonic() + pause >= until:
                break
            await asyncio.sleep(pause)
        log.warning("agent_unreachable", address=key[0], reason=reason)
        if is_lost:
            self._forget_if_current(key, agent)
        raise AgentUnreachableError(f"the agent at {key[0]} does not answer")

    async def _read(self, workspace: Workspace, key: Key, task_id: str) -> CurrentIteration | None:
        """Asks the agent once, and once more if the first answer is an error.

        If the read fails, closes the channel, unless the channel was also used for signals. Raises
        NotAcknowledgedError.
        """

        async def ask(agent: _Agent, token: str) -> CurrentIteration | None:
            return await agent.current_iteration(token, task_id)

        agent = self._agent(key, is_signal=False)
        try:
            async with asyncio.timeout(SIGNAL_BUDGET_SECONDS):
                try:
                    return await self._authenticated(workspace, agent, ask)
                except NotAcknowledgedError:
                    # The agent may have the previous signing key, or may have just closed the
                    # connection.
                    agent = self._agent(key, is_signal=False)
                    return await self._authenticated(workspace, agent, ask)
        except (TimeoutError, NotAcknowledgedError) as error:
            reason = str(error) or "it does not answer"
        log.warning("agent_not_read", address=key[0], reason=reason)
        if not agent.is_signalled:
            self._forget_if_current(key, agent)
        raise NotAcknowledgedError(reason)

    async def _authenticated(
        self,
        workspace: Workspace,
        agent: _Agent,
        attempt: Callable[[_Agent, str], Awaitable[Reply]],
    ) -> Reply:
        """Calls `attempt` with a signal token. Raises NotAcknowledgedError."""
        signing_key = self._pod_tokens.signing_key(workspace.id, workspace.epoch)
        token = self._pod_tokens.signal_token(workspace.id, workspace.epoch, signing_key)
        try:
            return await attempt(agent, token)
        except NotAcknowledgedError as error:
            if error.code is grpc.StatusCode.UNAUTHENTICATED:
                self._pod_tokens.note_refusal(workspace.id, workspace.epoch, signing_key)
            raise

    def _agent(self, key: Key, *, is_signal: bool) -> _Agent:
        """The channel to the agent.

        When there are too many channels, those that were opened only for reads are closed first.
        """
        agent = self._agents.get(key)
        if agent is None:
            if len(self._agents) >= self._max_streams:
                self._forget(next(iter(self._agents)))
            agent = self._agents[key] = _Agent(self._connector.open(*key, _OPTIONS))
            self._agents.move_to_end(key, last=is_signal)
        elif is_signal:
            self._agents.move_to_end(key)
        return agent

    def _forget_if_current(self, key: Key, agent: _Agent) -> None:
        """Forgets the channel, unless another call has already replaced it."""
        if self._agents.get(key) is agent:
            self._forget(key)

    def _forget(self, key: Key) -> None:
        """Stops keeping the channel to the agent, and closes it in the background."""
        agent = self._agents.pop(key, None)
        if agent is not None:
            closing = asyncio.create_task(agent.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
