"""The control plane's end of AgentService.Signals."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import grpc
import grpc.aio
from evershell.agent.v1.agent_service_pb2 import Acknowledgement, Signal
from evershell.agent.v1.agent_service_pb2_grpc import AgentServiceStub

if TYPE_CHECKING:
    from evershell.agent.v1.agent_service_pb2_grpc import AgentServiceAsyncStub


class NotAcknowledgedError(Exception):
    """The signal was not acknowledged. `code` is the status with which the stream ended, if any."""

    def __init__(self, reason: str, code: grpc.StatusCode | None = None) -> None:
        super().__init__(reason)
        self.code = code


@contextmanager
def _ends_as_errors() -> Iterator[None]:
    """Raises NotAcknowledgedError if another task cancels the gRPC call inside the block.

    gRPC raises CancelledError in every task that waits for the call, although these tasks are not
    cancelled. If the current task itself is cancelled, the CancelledError passes.
    """
    try:
        yield
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise NotAcknowledgedError("the call was ended") from None


class SignalStream:
    """A stream of signals to one agent. Any number of signals can await acknowledgement."""

    def __init__(self, channel: grpc.aio.Channel, token: str) -> None:
        """`token` is the signal token with which the stream is opened."""
        stub: AgentServiceAsyncStub = AgentServiceStub(channel)
        self._call = stub.Signals(metadata=(("authorization", f"Bearer {token}"),))
        # The number of signals so far, which is also the id of the last one.
        self._sent = 0
        # The callers that wait for an acknowledgement, by the id of the signal. The result is None
        # if the stream has ended.
        self._waiting: dict[int, asyncio.Future[Acknowledgement | None]] = {}
        # gRPC accepts only one write to a stream at a time.
        self._sending = asyncio.Lock()
        self._end = NotAcknowledgedError("the stream was closed")
        self._reader = asyncio.create_task(self._read())

    @property
    def is_over(self) -> bool:
        """Whether another stream is needed for further signals."""
        return self._reader.done()

    async def send(self, signal: Signal) -> Acknowledgement:
        """Sends the signal with its own id, and returns the acknowledgement.

        Waits as long as the stream lasts. Raises NotAcknowledgedError.
        """
        self._sent += 1
        signal.id = self._sent
        waiting: asyncio.Future[Acknowledgement | None] = asyncio.Future()
        self._waiting[signal.id] = waiting
        try:
            # A write fails only if the stream has ended, and the reader reports the end.
            with (
                suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, NotAcknowledgedError),
                _ends_as_errors(),
            ):
                async with self._sending:
                    await self._call.write(signal)
            acknowledgement = await waiting
        finally:
            del self._waiting[signal.id]
        if acknowledgement is None:
            raise self._end
        return acknowledgement

    async def close(self, grace_seconds: float) -> None:
        """Ends the stream. Waiting signals may still be acknowledged within `grace_seconds`."""
        # gRPC raises InternalError if the agent ended before the stream was open.
        with (
            suppress(TimeoutError, grpc.aio.InternalError, NotAcknowledgedError),
            _ends_as_errors(),
        ):
            async with asyncio.timeout(grace_seconds):
                async with self._sending:
                    await self._call.done_writing()
                await asyncio.wait([self._reader])
        self._call.cancel()

    async def _read(self) -> None:
        received = 0
        try:
            async for acknowledgement in self._call:
                received += 1
                # gRPC yields None for bytes that cannot be parsed. An agent must not send more
                # acknowledgements than it has received signals, or it could keep this process busy.
                if not isinstance(acknowledgement, Acknowledgement) or received > self._sent:
                    self._end = NotAcknowledgedError("it does not follow the protocol")
                    break
                self._resolve(acknowledgement.id, acknowledgement)
        except grpc.aio.AioRpcError as error:
            code = error.code()
            self._end = NotAcknowledgedError(error.details() or code.name, code)
        finally:
            for signal_id in self._waiting:
                self._resolve(signal_id, None)
            self._call.cancel()

    def _resolve(self, signal_id: int, acknowledgement: Acknowledgement | None) -> None:
        waiting = self._waiting.get(signal_id)
        if waiting is not None and not waiting.done():
            waiting.set_result(acknowledgement)
