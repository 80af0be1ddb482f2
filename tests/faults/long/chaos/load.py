"""The load: callers submit, watch and cancel tasks, delete workspaces, and set and end holds."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

from tests.faults.long.chaos.callers import NO_ANSWER, Callers, Reply, Wire

# The time limit of a call, without its `wait`. No fault lasts longer than 20 s, so every call is
# answered by then.
_ANSWER_SECONDS = 30.0
# The time to wake an agent, which is added to the time limit of a submission.
_WAKE_SECONDS = 30.0
_PAUSE_SECONDS = 0.15
# How long a workspace must be idle before it is suspended.
IDLE_SECONDS = 1.0
# The output tokens of each iteration. Each token costs one nano-dollar.
TOKENS = 1000
PRICES = json.dumps({"scripted": {"input": 0, "output": 0.001}})
_LIMITS: tuple[dict[str, Any], ...] = (
    {"max_duration": "0.5s", "force_after": "0.1s"},
    {"max_cost": {"currency_code": "USD", "nanos": 2 * TOKENS}},
)
# The shortest and the longest time for which a watcher keeps one connection.
_STAY_SECONDS = (0.5, 8.0)
# The maximum number of messages that a watcher reads from one connection.
_MESSAGES = 1_000
# The longest pause between two cancellations of all tasks of the organization.
_BATCH_SECONDS = 5.0
# The shortest and the longest time between two holds of the organization.
_UNHELD_SECONDS = (2.0, 12.0)
# The shortest and the longest time from a hold to the first attempt to release it.
_HELD_SECONDS = (0.0, 0.5)
# The pause between two attempts to release the hold. More attempts would make it slower to judge
# the history, because each failed attempt may still take effect within a minute.
_RELEASE_SECONDS = 1.0
# The slugs that a stack under faults may answer. The credentials and requests of the load are
# valid, so any other slug, such as `unauthenticated`, is a defect.
_ALLOWED = frozenset(
    {
        "",
        "workspace_stopped",
        "workspace_failed",
        "workspace_provisioning",
        "workspace_busy",
        "workspace_deleting",
        "parent_not_running",
        "org_on_hold",
        "invalid_state",
        "agent_unreachable",
        "unavailable",
        "deadline_exceeded",
    }
)
# The slug of calls on a workspace that was removed.
_GONE = "workspace_not_found"

# The fields of a request that name a task.
_Named = dict[str, str]


class Load:
    """Makes calls until `end` is called. The Callers record the calls."""

    def __init__(self, callers: Callers, workspaces: Mapping[str, int], seed: int) -> None:
        """`workspaces` maps the id of each workspace to its last `seq`."""
        self._callers = callers
        self._workspace_ids = list(workspaces)
        # The last `seq` that a watcher has seen in each log.
        self._seqs = dict(workspaces)
        # The tasks whose end a watcher has seen.
        self.ended = set[str]()
        self._seed = seed
        self._over = asyncio.Event()
        # How often each answer was given, by RPC and by outcome or slug.
        self.answers: Counter[tuple[str, str]] = Counter()
        # The ids of the workspaces that `_delete` has created to delete them.
        self.deleted_ids: list[str] = []
        # The last task that was submitted to each workspace. It may have ended.
        self._tasks: dict[str, str] = {}
        # Answers that no fault explains.
        self.problems: list[str] = []

    async def run(self) -> None:
        """Makes calls until `end` is called, and returns when all calls are answered."""
        async with asyncio.TaskGroup() as group:
            for number, workspace_id in enumerate(self._workspace_ids):
                chance = random.Random(f"{self._seed} {number}")
                group.create_task(self._work(workspace_id, chance))
            group.create_task(self._cancel_all(random.Random(self._seed)))
            group.create_task(self._hold(random.Random(f"{self._seed} holds")))
            group.create_task(self._delete(random.Random(f"{self._seed} deletions")))

    async def watch(self) -> None:
        """Watches every workspace until this call is cancelled. Often reconnects."""
        async with asyncio.TaskGroup() as group:
            for workspace_id in self._workspace_ids:
                chance = random.Random(f"{self._seed} {workspace_id}")
                group.create_task(self._watch(workspace_id, chance))

    async def _watch(self, workspace_id: str, chance: random.Random) -> None:
        def saw(event: Mapping[str, Any]) -> None:
            self._seqs[workspace_id] = int(event["seq"])
            if event["type"] == "task_completed":
                self.ended.add(event["task_id"])

        while True:
            wire, seconds = chance.choice(list(Wire)), chance.uniform(*_STAY_SECONDS)
            after = self._seqs[workspace_id]
            await self._callers.watch(wire, workspace_id, _MESSAGES, seconds, after, saw)
            await asyncio.sleep(_PAUSE_SECONDS)

    def end(self) -> None:
        """Makes `run` begin no further task."""
        self._over.set()

    async def force(self, wire: Wire) -> None:
        """Cancels all tasks over this wire, with a force deadline that is due at once."""
        calls = (self._call(wire, "CancelTask", **each, force_after="0s") for each in self._named())
        await asyncio.gather(*calls)

    async def settle(self, limit_seconds: float) -> list[str]:
        """Resumes every workspace and runs a task in it. Removes the workspaces in `deleted_ids`.

        Returns a line for each workspace for which this failed or took more than `limit_seconds`.
        """
        self._over.clear()

        async def one(workspace_id: str) -> str:
            try:
                async with asyncio.timeout(limit_seconds):
                    status = await self._complete_one(workspace_id)
            except TimeoutError:
                return f"{workspace_id} completed no task within {limit_seconds:g} s"
            return "" if status == "completed" else f"{workspace_id}: its last task ended {status}"

        async def gone(workspace_id: str) -> str:
            try:
                async with asyncio.timeout(limit_seconds):
                    await self._await_removal(workspace_id)
            except TimeoutError:
                return f"{workspace_id} was not removed within {limit_seconds:g} s"
            return ""

        ends = [*map(one, self._workspace_ids), *map(gone, self.deleted_ids)]
        return [line for line in await asyncio.gather(*ends) if line]

    async def _await_removal(self, workspace_id: str) -> None:
        """Deletes the workspace, since its deletion may have failed, and waits for its removal."""
        fields = {"workspace_id": workspace_id}
        while (await self._call(Wire.REST, "DeleteWorkspace", **fields)).slug:
            await asyncio.sleep(_PAUSE_SECONDS)
        while (await self._call(Wire.REST, "GetWorkspace", **fields)).slug != _GONE:
            await asyncio.sleep(_PAUSE_SECONDS)
        last = await self._call(Wire.REST, "DeleteWorkspace", **fields)
        if last.body.get("status") != "deleting":
            self.problems.append(f"{workspace_id} is gone, and its deletion answers {last}")

    async def _complete_one(self, workspace_id: str) -> str:
        task_id = ""
        # A submission fails if the controller has not yet noticed that the agent has died.
        while not task_id:
            await self._bring_up(workspace_id, [Wire.REST])
            submitted = await self._call(
                Wire.REST, "SubmitTask", workspace_id=workspace_id, description="true"
            )
            task_id = "" if submitted.slug else str(submitted.body["task_id"])
            if submitted.slug == "org_on_hold":
                # A HoldOrg call whose answer was lost may have taken effect after the release.
                await self._call(Wire.REST, "ReleaseOrg")
        while True:
            fields = {"workspace_id": workspace_id, "task_id": task_id}
            task = (await self._call(Wire.REST, "GetTask", **fields)).body
            # A watcher must also have seen the end.
            if task.get("completed_at") and task_id in self.ended:
                return str(task["status"])
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _bring_up(self, workspace_id: str, wires: list[Wire]) -> bool:
        """Waits until the workspace is idle, and resumes it if it has stopped or failed.

        Returns False if `end` is called first.
        """
        attempt = 0
        while not self._over.is_set():
            wire = wires[attempt % len(wires)]
            attempt += 1
            status = (await self._call(wire, "GetWorkspace", workspace_id=workspace_id)).body.get(
                "status"
            )
            # A suspended workspace can stay suspended, because a task wakes it.
            if status in ("idle", "suspended"):
                return True
            if status in ("stopped", "failed"):
                await self._call(wire, "ResumeWorkspace", workspace_id=workspace_id)
            await asyncio.sleep(_PAUSE_SECONDS)
        return False

    async def _work(self, workspace_id: str, chance: random.Random) -> None:
        """Runs and cancels one task after another."""
        while await self._bring_up(workspace_id, chance.sample(list(Wire), len(Wire))):
            self._tasks.pop(workspace_id, None)
            iterations, seconds = chance.randint(1, 5), chance.uniform(0.05, 0.4)
            limits = chance.choice(_LIMITS)
            parent = self._parent(chance)
            if parent:
                # The child has many iterations, so it still runs when its parent is cancelled.
                iterations = 5
            submitted = await self._call(
                chance.choice(list(Wire)),
                "SubmitTask",
                workspace_id=workspace_id,
                description="\n".join([f"tokens: {TOKENS} sleep {seconds:.2f}"] * iterations),
                **({"limits": limits} if chance.random() < 0.2 else {}),
                **({"parent_task_id": parent["task_id"]} if parent else {}),
            )
            if submitted.slug in ("parent_not_running", "org_on_hold"):
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            # The details of a failure also name a task: the new one, or the task that already runs.
            task_id = str(submitted.body.get("task_id", ""))
            self._tasks[workspace_id] = task_id
            if parent and not submitted.slug and chance.random() < 0.7:
                child = {"workspace_id": workspace_id, "task_id": task_id}
                await self._cancel_tree(parent, child, chance, chance.uniform(0, seconds))
            else:
                cancels = [
                    self._cancel(
                        workspace_id, task_id, chance, chance.uniform(0, iterations * seconds)
                    )
                    for _ in range(chance.choice((0, 1, 1, 2, 3)))
                ]
                await asyncio.gather(*cancels)
            if chance.random() < 0.06:
                wire = chance.choice(list(Wire))
                await self._call(wire, "StopWorkspace", workspace_id=workspace_id)
            elif chance.random() < 0.1:
                # The workspace may be suspended during this pause.
                await asyncio.sleep(3 * IDLE_SECONDS)

    async def _delete(self, chance: random.Random) -> None:
        """Creates workspaces. Deletes each one while it is starting or while its task runs."""
        while not self._over.is_set():
            wires = chance.choices(list(Wire), k=3)
            created = await self._call(wires[0], "CreateWorkspace")
            if created.slug:
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            fields = {"workspace_id": str(created.body["id"])}
            self.deleted_ids.append(fields["workspace_id"])
            await asyncio.sleep(chance.uniform(0, 2))
            await self._call(wires[1], "SubmitTask", description="sleep 0.3\nsleep 0.3", **fields)
            await asyncio.sleep(chance.uniform(0, 0.5))
            await self._call(wires[2], "DeleteWorkspace", **fields)

    def _parent(self, chance: random.Random) -> _Named | None:
        """Chooses a parent for about half of the tasks; None for the others."""
        others = self._named()
        return chance.choice(others) if others and chance.random() < 0.5 else None

    def _named(self) -> list[_Named]:
        """Returns the tasks that may be running, each as the fields that name it."""
        tasks = self._tasks.items()
        return [{"workspace_id": at, "task_id": task_id} for at, task_id in tasks if task_id]

    async def _cancel(
        self, workspace_id: str, task_id: str, chance: random.Random, after_seconds: float
    ) -> None:
        await asyncio.sleep(after_seconds)
        fields: dict[str, Any] = {"workspace_id": workspace_id}
        if task_id and chance.random() < 0.5:
            fields["task_id"] = task_id
            fields["include_descendants"] = chance.random() < 0.5
        if chance.random() < 0.15:
            fields["force_after"] = f"{chance.uniform(0, 0.3):.3f}s"
        if chance.random() < 0.3:
            fields["wait"] = "2s"
        await self._call(chance.choice(list(Wire)), "CancelTask", **fields)

    async def _cancel_tree(
        self, parent: _Named, child: _Named, chance: random.Random, after_seconds: float
    ) -> None:
        """Cancels the tree of the parent, then reads the child.

        evershell.histories judges the answer about the child.
        """
        await asyncio.sleep(after_seconds)
        first, second = chance.choices(list(Wire), k=2)
        await self._call(first, "CancelTask", **parent, include_descendants=True)
        await self._call(second, "GetTask", **child)

    async def _cancel_all(self, chance: random.Random) -> None:
        while not self._over.is_set():
            await asyncio.sleep(chance.uniform(0, _BATCH_SECONDS))
            await self._call(chance.choice(list(Wire)), "CancelTasks", all=True)

    async def _hold(self, chance: random.Random) -> None:
        while not self._over.is_set():
            await asyncio.sleep(chance.uniform(*_UNHELD_SECONDS))
            first, second, third = chance.choices(list(Wire), k=3)
            await self._call(first, "HoldOrg", cancel_running=chance.random() < 0.5)
            await self._call(second, "GetHold")
            await asyncio.sleep(chance.uniform(*_HELD_SECONDS))
            while (released := await self._call(third, "ReleaseOrg")).slug:
                if not _is_allowed(released):
                    break
                await asyncio.sleep(_RELEASE_SECONDS)

    async def _call(self, wire: Wire, rpc: str, **fields: Any) -> Reply:
        limit_seconds = _ANSWER_SECONDS + (2.0 if "wait" in fields else 0.0)
        limit_seconds += _WAKE_SECONDS if rpc == "SubmitTask" else 0.0
        reply = await self._callers.call(wire, rpc, limit_seconds, fields)
        self.answers[rpc, reply.slug or str(reply.body.get("outcome", "")) or "success"] += 1
        answer = f"{rpc} over {wire}, request {reply.request_id or 'unknown'}: {reply.status}"
        is_gone = reply.slug == _GONE and fields.get("workspace_id") in self.deleted_ids
        if reply.problem or reply.slug == NO_ANSWER or not (_is_allowed(reply) or is_gone):
            self.problems.append(f"{answer} {reply.slug} {reply.problem} {dict(reply.body)}")
        return reply


def _is_allowed(reply: Reply) -> bool:
    """Whether a fault may have caused the answer."""
    return reply.is_lost or reply.slug in _ALLOWED
