"""A connection that stays registered with the event loop.

psycopg adds a reader to the event loop for each wait and removes it afterwards, which takes five
system calls and a timer for each statement.
"""

import asyncio
from contextlib import suppress
from typing import Any, TypeVar

import psycopg
from psycopg import AsyncConnection
from psycopg.abc import PQGen
from psycopg.pq import ConnStatus, TransactionStatus
from psycopg.waiting import Ready, Wait

Result = TypeVar("Result")

# How long a cancelled caller waits for the server to end the statement. psycopg has the same limit.
_END_SECONDS = 5.0


class RegisteredReader(AsyncConnection[Any]):
    """Keeps its reader from one statement to the next.

    The reader is removed before the descriptor is closed or psycopg adds its own, because a later
    connection may get the same descriptor.
    """

    # The descriptor that is registered, and the wait for it.
    _registered: int | None = None
    _answer: asyncio.Future[None] | None = None

    async def wait(
        self, gen: PQGen[Result], interval: float = 0.1, timeout: float | None = None
    ) -> Result:
        """See AsyncConnection.wait. All waits but those for an answer are left to it."""
        try:
            state = next(gen)
            while state == Wait.R and timeout is None:
                await self._readable()
                state = gen.send(Ready.R)
        except StopIteration as done:
            if self.pgconn.status != ConnStatus.OK:
                self._unregister()
            result: Result = done.value
            return result
        except asyncio.CancelledError:
            await self._end_statement(_continued(state, gen))
            raise
        except BaseException:
            # libpq closes the descriptor of a lost connection.
            self._unregister()
            raise
        self._unregister()
        return await super().wait(_continued(state, gen), interval, timeout)

    async def close(self) -> None:
        """See AsyncConnection.close."""
        self._unregister()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(psycopg.OperationalError("the connection is closed"))
        await super().close()

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        if self._registered is None:
            descriptor = self.pgconn.socket
            loop.add_reader(descriptor, self._on_readable)
            self._registered = descriptor
        self._answer = loop.create_future()
        await self._answer

    def _on_readable(self) -> None:
        if self._answer is None or self._answer.done():
            # Input that nobody waits for: the server has ended the session. The event loop would
            # call again at once.
            self._unregister()
        else:
            self._answer.set_result(None)

    def _unregister(self) -> None:
        if self._registered is not None:
            asyncio.get_running_loop().remove_reader(self._registered)
            self._registered = None

    async def _end_statement(self, gen: PQGen[Any]) -> None:
        """Cancels the statement in the server and waits for its end, as AsyncConnection does.

        Otherwise it could be committed later.
        """
        self._unregister()
        if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
            with suppress(psycopg.Error):
                await self.cancel_safe(timeout=_END_SECONDS)
                await super().wait(gen, timeout=_END_SECONDS)


def _continued(state: Wait, gen: PQGen[Result]) -> PQGen[Result]:
    """The rest of a generator that has yielded this state."""
    try:
        while True:
            state = gen.send((yield state))
    except StopIteration as done:
        result: Result = done.value
        return result
