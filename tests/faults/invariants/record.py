"""The observations of a run. The invariants check them together with the rows of the database."""

import asyncio
from dataclasses import dataclass, field
from datetime import datetime

from evershell.core.caller import Caller
from evershell.core.cancel_task import CancelResult
from evershell.core.task import CancelIntent, Task, Usage


@dataclass(slots=True, kw_only=True)
class Call:
    """One call of CancelTask, and its answer."""

    request_id: str
    by: Caller
    asked_at: datetime
    # The task that the call names. If it names none: the workspace's current task at that time.
    target_id: str | None
    wait_seconds: float | None
    # How long the signal to the agent may take.
    signal_seconds: float
    force_at: datetime | None
    # The answers that are correct for the state before the call; None if the database may fail
    # during the call.
    expected: frozenset[str] | None
    # How many times a server had begun to drain before the call.
    drains_before: int
    runner: "asyncio.Task[CancelResult]"
    # The outcome, or the slug of the failure. Empty until the call is answered.
    answer: str = ""
    details: dict[str, object] = field(default_factory=dict)
    answered_at: datetime | None = None
    # The task as another session of the database saw it when the call was answered.
    seen_task: Task | None = None
    returned_task: Task | None = None
    has_left: bool = False

    @property
    def is_promise(self) -> bool:
        """Whether the answer told the caller that the cancellation is recorded."""
        return (
            self.answer in ("accepted", "already_requested")
            or self.details.get("intent_recorded") is True
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """A cancellation that was sent to an agent.

    `was_recorded`: whether another session of the database saw the intent when the signal was sent.
    """

    task_id: str
    was_recorded: bool


@dataclass(slots=True, kw_only=True)
class Iteration:
    """An iteration as the agent's model and tool have seen it."""

    epoch: int
    task_id: str
    number: int
    # Whether the agent knew of the cancellation before the iteration began, from a signal or from
    # the reply to its last call.
    was_cancelled: bool
    # What the model has said so far.
    content: str = ""
    # Whether the model gave a final reply.
    is_final: bool = False
    # Whether the model failed.
    failed: bool = False
    # None if no tool was called. Empty while the tool call has no result.
    tool_output: str | None = None
    # The call that was interrupted; empty if none was.
    interrupted_call: str = ""
    # Whether the agent was allowed to interrupt the call at that time.
    may_interrupt: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """A reply that an agent got from the control plane."""

    epoch: int
    # Whether the agent's epoch had ended when the agent sent the call.
    was_over: bool
    # Whether the intent was recorded when the agent sent the call, and the task was still open
    # after the call.
    was_recorded: bool
    says_fenced: bool
    says_cancelled: bool


@dataclass(slots=True)
class Record:
    """The observations of one run."""

    calls: list[Call] = field(default_factory=list)
    signals: list[Signal] = field(default_factory=list)
    iterations: list[Iteration] = field(default_factory=list)
    hops: list[Hop] = field(default_factory=list)
    # The tasks that their own agent has ended, each with the agent's epoch.
    ended_by_agent: dict[str, int] = field(default_factory=dict)
    # The tasks whose end an agent has proposed, whether or not it was committed.
    ends_proposed: set[str] = field(default_factory=set)
    # The tasks that an agent has ended as `cancelled` without a recorded intent.
    unasked: list[str] = field(default_factory=list)
    # Submissions that an idle and healthy agent did not accept.
    refused_submits: list[str] = field(default_factory=list)
    # The request ids of SubmitTask calls on a suspended workspace.
    wakes: set[str] = field(default_factory=set)
    # The current task at each call of StopWorkspace or DeleteWorkspace, by request id.
    stops: dict[str, str | None] = field(default_factory=dict)
    # Each task as first seen after its end.
    ends: dict[str, Task] = field(default_factory=dict)
    # Each task's intent as first seen.
    intents: dict[str, CancelIntent] = field(default_factory=dict)
    # The usage of each task, as last seen.
    usages: dict[str, Usage] = field(default_factory=dict)
    # How many times a server has drained.
    drains: int = 0
    # Exceptions that must never be raised.
    defects: list[BaseException] = field(default_factory=list)
