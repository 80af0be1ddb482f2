"""A target of GroupCommit in memory."""

import asyncio
from collections.abc import Sequence

from evershell.store.group_commit import GroupCommit
from tests.support.waiting import settle


class Table:
    """The target of GroupCommit. Doubles each number. A statement ends when the test lets it."""

    def __init__(self) -> None:
        self.statements: list[list[int]] = []
        self.committed: list[int] = []
        self.may_end = asyncio.Event()
        # A statement with this member does not end before this event.
        self.stuck: dict[int, asyncio.Event] = {}
        # A statement with this member fails.
        self.errors: dict[int, Exception] = {}
        self.in_flight = 0
        self.most_in_flight = 0

    async def commit(self, requests: Sequence[int]) -> list[int]:
        self.statements.append(list(requests))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await self.may_end.wait()
            for request in requests:
                if request in self.stuck:
                    await self.stuck[request].wait()
        finally:
            self.in_flight -= 1
        for request in requests:
            if request in self.errors:
                raise self.errors[request]
        self.committed.extend(requests)
        return [2 * request for request in requests]


async def start(group: GroupCommit[int, int], *numbers: int) -> list[asyncio.Task[int]]:
    """Calls with each number, and lets the calls run until they wait."""

    async def call(number: int) -> int:
        return await group(number)

    tasks = [asyncio.create_task(call(number)) for number in numbers]
    await settle()
    return tasks
