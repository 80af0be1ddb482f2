"""Mixed calls over REST and gRPC, valid and invalid, with changing connections."""

import asyncio
import random
import secrets
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from evershell.histories.recorder import Recorder
from tests.faults.long.chaos.callers import Callers, Reply, Wire
from tests.support.stack import Stack

CALLERS = 8
# After this many calls, a caller closes its connections and opens new ones.
_CALLS_A_CONNECTION = 50
_ANSWER_SECONDS = 20.0
_PAUSE_SECONDS = 0.1
# The slugs that a valid call may get: an empty one for a success, or one that depends on the state
# of the workspace and its agent.
_STATES = frozenset(
    {
        "",
        "workspace_busy",
        "workspace_stopped",
        "workspace_provisioning",
        "invalid_state",
        "agent_unreachable",
    }
)
# The relative frequency of each kind of call. `stop` is rare: the agent must start again, which
# costs as much as a hundred calls.
_WEIGHTS = {"submit": 20, "cancel": 24, "read": 34, "watch": 3, "stop": 0.1, "refused": 18}


@dataclass(slots=True)
class Tally:
    """Counts all answers, and collects the wrong ones."""

    # How often each answer was given, by RPC and by outcome or slug.
    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    # Answers that are malformed, or whose slug is not allowed for the call.
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

    def __init__(
        self, stack: Stack, workspace_ids: list[str], seed: int, recorder: Recorder
    ) -> None:
        self._stack = stack
        self._recorder = recorder
        self._workspace_ids = workspace_ids
        self._chance = random.Random(seed)
        self._until = 0
        self.tally = Tally()

    async def run(self, calls: int) -> None:
        """Makes `calls` calls, then waits until every workspace is idle.

        Each caller finishes its last call, so there may be a few more calls.
        """
        self._until = self.tally.calls + calls
        async with asyncio.TaskGroup() as group:
            for _ in range(CALLERS):
                group.create_task(self._keep_calling())
        callers = Callers(self._stack, self._recorder)
        try:
            for workspace_id in self._workspace_ids:
                await self._await_idle(callers, workspace_id)
        finally:
            await callers.close()

    async def _keep_calling(self) -> None:
        while self.tally.calls < self._until:
            callers = Callers(self._stack, self._recorder)
            try:
                for _ in range(_CALLS_A_CONNECTION):
                    if self.tally.calls >= self._until:
                        return
                    (kind,) = self._chance.choices(list(_WEIGHTS), list(_WEIGHTS.values()))
                    await self._make(kind, callers, self._chance.choice(self._workspace_ids))
            finally:
                await callers.close()

    async def _await_idle(self, callers: Callers, workspace_id: str) -> None:
        """Waits until the workspace is idle, and resumes it if it is stopped."""
        fields = {"workspace_id": workspace_id}

        async def status() -> Any:
            reply = await callers.call(Wire.REST, "GetWorkspace", _ANSWER_SECONDS, fields)
            return reply.body.get("status")

        while (now := await status()) != "idle":
            if now == "stopped":
                await callers.call(Wire.REST, "ResumeWorkspace", _ANSWER_SECONDS, fields)
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _make(self, kind: str, callers: Callers, workspace_id: str) -> None:
        chance = self._chance
        match kind:
            case "submit":
                command = f"echo {'x' * chance.randrange(200)}; sleep 0.0{chance.randrange(9)}"
                text = "\n".join([command] * chance.randint(1, 3))
                await self._call(
                    callers, "SubmitTask", _STATES, workspace_id=workspace_id, description=text
                )
            case "cancel":
                durations = chance.choice(({}, {}, {"wait": "0.2s"}, {"force_after": "0.01s"}))
                await self._call(
                    callers, "CancelTask", _STATES, workspace_id=workspace_id, **durations
                )
            case "read":
                rpc = chance.choice(("GetWorkspace", "ListTasks", "ListWorkspaces"))
                fields = {} if rpc == "ListWorkspaces" else {"workspace_id": workspace_id}
                await self._call(callers, rpc, ("",), **fields)
            case "watch":
                messages, seconds = chance.choice((1, 5, 1000)), chance.uniform(0, 0.5)
                wire = chance.choice(list(Wire))
                reply = await callers.watch(wire, workspace_id, messages, seconds)
                self.tally.note("WatchEvents", reply, ("",))
            case "stop":
                for rpc in ("StopWorkspace", "ResumeWorkspace"):
                    await self._call(callers, rpc, _STATES, workspace_id=workspace_id)
                await self._await_idle(callers, workspace_id)
            case "refused":
                await self._refused(callers, workspace_id)

    async def _refused(self, callers: Callers, workspace_id: str) -> None:
        tokens = self._stack.tokens
        unknown = f"sk_{secrets.token_urlsafe(32)}"
        slug, token, fields = self._chance.choice(
            (
                ("unauthenticated", unknown, {}),
                ("unauthenticated", tokens["expired"], {}),
                ("unauthenticated", "", {}),
                ("permission_denied", tokens["read_only"], {}),
                ("workspace_not_found", tokens["other_org"], {}),
                ("task_not_found", None, {"task_id": f"task_{secrets.token_hex(8)}"}),
                ("validation_error", None, {"reason": "x" * 501}),
            )
        )
        await self._call(callers, "CancelTask", (slug,), token, workspace_id=workspace_id, **fields)

    async def _call(
        self,
        callers: Callers,
        rpc: str,
        allowed: Collection[str],
        token: str | None = None,
        **fields: Any,
    ) -> None:
        wire = self._chance.choice(list(Wire))
        reply = await callers.call(wire, rpc, _ANSWER_SECONDS, fields, token)
        self.tally.note(rpc, reply, allowed)
