"""A service in this process that answers as its script says."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from evershell.api.status import rich_status
from evershell.core.errors import Failure
from tests.unit.client.fake_channel import CODES, trailers


class Scripted:
    """Answers each call with the next of `script`: a reply, a Failure, or a stream's messages.

    If the answer, or a message of a stream, is "hang", the call waits until it is cancelled.
    """

    def __init__(self) -> None:
        self.script: list[Any] = []
        self.seen: list[Any] = []
        self.tokens: list[str] = []
        self.metadata: dict[str, str] = {}
        self.started = asyncio.Event()
        # Set once a caller has ended a stream that hangs.
        self.ended = asyncio.Event()

    def __getattr__(self, rpc: str) -> Any:
        """Returns the method for any RPC except WatchEvents."""
        return self._answer

    async def _answer(self, request: Any, context: Any) -> Any:
        self.seen.append(request)
        self.metadata = dict(context.invocation_metadata())
        self.tokens.append(self.metadata["authorization"])
        self.started.set()
        answer = self.script.pop(0)
        if isinstance(answer, Failure):
            code = CODES[rich_status(answer, "request_1").code]
            await context.abort(code, answer.message, trailers(answer))
        if answer == "hang":
            await asyncio.Event().wait()
        context.set_trailing_metadata((("x-request-id", "request_1"),))
        return answer

    async def WatchEvents(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for message in await self._answer(request, context):
            if message == "hang":
                try:
                    await asyncio.Event().wait()
                finally:
                    self.ended.set()
            yield message
