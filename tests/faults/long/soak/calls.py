"""Mixed calls: every RPC over every wire, both valid and invalid, on changing connections."""

import asyncio
import random
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from tests.faults.long.chaos.answers import Reply
from tests.faults.long.chaos.callers import Callers
from tests.faults.long.chaos.plan import Wire
from tests.support.stack import Stack

CALLERS = 8
# After this many calls a caller closes its connections and opens new ones.
_CALLS_A_CONNECTION = 50
_ANSWER_SECONDS = 20.0
_PAUSE_SECONDS = 0.1
_STATES = frozenset(
    {"workspace_busy", "workspace_stopped", "workspace_provisioning", "invalid_state"}
)


@dataclass(slots=True)
class Tally:
    """Counts of all answers, and the wrong ones."""

    # By RPC, and outcome or slug.
    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    # Answers that are malformed or have a slug that the call does not allow.
    problems: list[str] = field(default_factory=list)

    @property
    def calls(self) -> int:
        return self.answers.total()

    def note(self, rpc: str, reply: Reply, allowed: Collection[str]) -> None:
        self.answers[rpc, reply.slug or str(reply.body.get("outcome", "")) or "success"] += 1
        if reply.problem or reply.slug not in allowed:
            self.problems.append(
                f"{rpc}: {reply.status} {reply.slug} {reply.problem} {dict(reply.body)}"
            )


class Mix:
    """Concurrent callers that share some workspaces."""

    def __init__(self, stack: Stack, workspace_ids: list[str], seed: int) -> None:
        self._stack = stack
        self._workspace_ids = workspace_ids
        self._chance = random.Random(seed)
        self._last_task_ids = dict.fromkeys(workspace_ids, "")
        self._until = 0
        self.tally = Tally()

    async def run(self, calls: int) -> None:
        """Makes `calls` calls, then waits until every workspace is idle.

        Callers that are in a call at the end finish it, so a few more calls are possible.
        """
        self._until = self.tally.calls + calls
        async with asyncio.TaskGroup() as group:
            for _ in range(CALLERS):
                group.create_task(self._keep_calling())
        await asyncio.gather(
            *(self._await_idle(workspace_id) for workspace_id in self._workspace_ids)
        )

    async def _keep_calling(self) -> None:
        while self.tally.calls < self._until:
            callers = Callers(self._stack)
            try:
                for _ in range(_CALLS_A_CONNECTION):
                    if self.tally.calls >= self._until:
                        return
                    (action,) = self._chance.choices(list(_WEIGHTS), list(_WEIGHTS.values()))
                    await action(self, callers)
            finally:
                await callers.close()

    async def _await_idle(self, workspace_id: str) -> None:
        """Waits until the workspace is idle, and resumes it if it is stopped."""
        callers = Callers(self._stack)
        try:
            while (status := (await self._get(callers, workspace_id)).body.get("status")) != "idle":
                if status == "stopped":
                    await callers.call(
                        Wire.REST,
                        "ResumeWorkspace",
                        _ANSWER_SECONDS,
                        {"workspace_id": workspace_id},
                    )
                await asyncio.sleep(_PAUSE_SECONDS)
        finally:
            await callers.close()

    async def _get(self, callers: Callers, workspace_id: str) -> Reply:
        return await callers.call(
            Wire.REST, "GetWorkspace", _ANSWER_SECONDS, {"workspace_id": workspace_id}
        )

    async def _call(
        self,
        callers: Callers,
        rpc: str,
        allowed: Collection[str] = ("",),
        token: str | None = None,
        **fields: Any,
    ) -> Reply:
        reply = await callers.call(
            self._chance.choice(list(Wire)), rpc, _ANSWER_SECONDS, fields, token
        )
        self.tally.note(rpc, reply, allowed)
        return reply

    def _workspace_id(self) -> str:
        return self._chance.choice(self._workspace_ids)

    async def submit(self, callers: Callers) -> None:
        workspace_id = self._workspace_id()
        lines = [
            f"echo {'x' * self._chance.randrange(200)}; sleep 0.0{self._chance.randrange(9)}"
        ] * self._chance.randint(1, 3)
        reply = await self._call(
            callers,
            "SubmitTask",
            # The agent may be ending, or be slow on a busy machine.
            {"", "agent_unreachable", *_STATES},
            workspace_id=workspace_id,
            description="\n".join(lines),
            metadata={"of": "soak"},
        )
        self._last_task_ids[workspace_id] = str(reply.body.get("task_id", ""))

    async def cancel(self, callers: Callers) -> None:
        durations = self._chance.choice(({}, {}, {"wait": "0.2s"}, {"force_after": "0.01s"}))
        allowed = {"", "agent_unreachable", *_STATES}
        await self._call(
            callers,
            "CancelTask",
            allowed,
            workspace_id=self._workspace_id(),
            reason="soak",
            **durations,
        )

    async def cancel_named(self, callers: Callers) -> None:
        workspace_id = self._workspace_id()
        if task_id := self._last_task_ids[workspace_id]:
            allowed = {"", "agent_unreachable", *_STATES}
            await self._call(
                callers, "CancelTask", allowed, workspace_id=workspace_id, task_id=task_id
            )

    async def get_task(self, callers: Callers) -> None:
        workspace_id = self._workspace_id()
        if task_id := self._last_task_ids[workspace_id]:
            await self._call(callers, "GetTask", workspace_id=workspace_id, task_id=task_id)

    async def get_workspace(self, callers: Callers) -> None:
        await self._call(callers, "GetWorkspace", workspace_id=self._workspace_id())

    async def list_tasks(self, callers: Callers) -> None:
        await self._call(callers, "ListTasks", workspace_id=self._workspace_id())

    async def list_workspaces(self, callers: Callers) -> None:
        await self._call(callers, "ListWorkspaces")

    async def watch(self, callers: Callers) -> None:
        wire, workspace_id = self._chance.choice(list(Wire)), self._workspace_id()
        reply = await callers.watch(
            wire, workspace_id, self._chance.choice((1, 5, 1000)), self._chance.uniform(0, 0.5)
        )
        self.tally.note("WatchEvents", reply, ("",))

    async def stop(self, callers: Callers) -> None:
        workspace_id = self._workspace_id()
        await self._call(callers, "StopWorkspace", {"", *_STATES}, workspace_id=workspace_id)
        resumed = await self._call(
            callers, "ResumeWorkspace", {"", *_STATES}, workspace_id=workspace_id
        )
        while resumed.slug:
            # It is still stopping.
            await asyncio.sleep(_PAUSE_SECONDS)
            resumed = await self._call(
                callers, "ResumeWorkspace", {"", *_STATES}, workspace_id=workspace_id
            )

    async def create(self, callers: Callers) -> None:
        """Creates a workspace and stops it at once, because a running one would keep a process."""
        created = await self._call(callers, "CreateWorkspace", name="soak")
        await self._call(
            callers, "StopWorkspace", {"", *_STATES}, workspace_id=str(created.body["id"])
        )

    async def refused_credential(self, callers: Callers) -> None:
        unknown = f"sk_{secrets.token_urlsafe(32)}"
        token = self._chance.choice((self._stack.tokens["expired"], unknown, "eyJ.eyJ.x", ""))
        await self._call(
            callers, "CancelTask", ("unauthenticated",), token, workspace_id=self._workspace_id()
        )

    async def refused_scope(self, callers: Callers) -> None:
        token = self._stack.tokens["read_only"]
        await self._call(
            callers, "CancelTask", ("permission_denied",), token, workspace_id=self._workspace_id()
        )

    async def refused_workspace(self, callers: Callers) -> None:
        token = self._stack.tokens["other_org"]
        await self._call(
            callers,
            "GetWorkspace",
            ("workspace_not_found",),
            token,
            workspace_id=self._workspace_id(),
        )

    async def refused_task(self, callers: Callers) -> None:
        workspace_id = self._workspace_id()
        await self._call(
            callers,
            "CancelTask",
            ("task_not_found",),
            workspace_id=workspace_id,
            task_id=f"task_{secrets.token_hex(8)}",
        )

    async def refused_field(self, callers: Callers) -> None:
        await self._call(
            callers,
            "CancelTask",
            ("validation_error",),
            workspace_id=self._workspace_id(),
            reason="x" * 501,
        )


_WEIGHTS: dict[Callable[[Mix, Callers], Awaitable[None]], float] = {
    Mix.submit: 20,
    Mix.cancel: 16,
    Mix.cancel_named: 8,
    Mix.get_task: 12,
    Mix.get_workspace: 12,
    Mix.list_tasks: 6,
    Mix.list_workspaces: 4,
    Mix.watch: 3,
    # These start an agent, which costs as much as a hundred calls.
    Mix.stop: 0.1,
    Mix.create: 0.1,
    Mix.refused_credential: 6,
    Mix.refused_scope: 3,
    Mix.refused_workspace: 3,
    Mix.refused_task: 3,
    Mix.refused_field: 3,
}
