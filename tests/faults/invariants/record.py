"""The observations of a run. The invariants are checked from these and from the rows."""

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
    # Its task: the named one, or the current one at that moment.
    target_id: str | None
    wait_seconds: float | None
    # How long its signal may take.
    signal_seconds: float
    force_at: datetime | None
    # The correct answers for the state before the call; None if the database fails meanwhile.
    expected: frozenset[str] | None
    # How many times the server had begun to drain.
    drains_before: int
    runner: "asyncio.Task[CancelResult]"
    # The outcome, or the slug of the failure; empty until the call is answered.
    answer: str = ""
    details: dict[str, object] = field(default_factory=dict)
    answered_at: datetime | None = None
    # The target as another session of the database saw it when the call was answered.
    seen_task: Task | None = None
    returned_task: Task | None = None
    has_left: bool = False

    @property
    def is_promise(self) -> bool:
        """Whether the caller knows that the cancellation is recorded."""
        return (
            self.answer in ("accepted", "already_requested")
            or self.details.get("intent_recorded") is True
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """A cancellation that is sent to an agent.

    `was_recorded`: whether another session of the database saw its intent at that moment.
    """

    task_id: str
    was_recorded: bool


@dataclass(slots=True, kw_only=True)
class Iteration:
    """An iteration as the agent's model and tool saw it."""

    epoch: int
    task_id: str
    number: int
    # Whether the agent had received the cancellation before the iteration began: by a signal, or
    # with the reply to its last call.
    was_cancelled: bool
    # What the model has said so far.
    content: str = ""
    # A final reply, an error, or neither.
    is_final: bool = False
    failed: bool = False
    # None: no tool was called; empty: the call has no result yet.
    tool_output: str | None = None
    # The call that was interrupted, and whether that was allowed at that moment.
    interrupted_call: str = ""
    may_interrupt: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """A reply that an agent got from the control plane."""

    epoch: int
    # Whether the epoch was over when the call was sent.
    was_over: bool
    # Whether the intent was recorded when the call was sent, and the task was still open after it.
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
    # Tasks that their own agent has ended, with the epoch.
    ended_by_agent: dict[str, int] = field(default_factory=dict)
    # Tasks whose end an agent has proposed, committed or not.
    ends_proposed: set[str] = field(default_factory=set)
    # Tasks that an agent has ended `cancelled` without a recorded intent.
    unasked: list[str] = field(default_factory=list)
    # Submits that an idle and healthy agent did not accept.
    refused_submits: list[str] = field(default_factory=list)
    # Request ids of SubmitTask in a suspended workspace.
    wakes: set[str] = field(default_factory=set)
    # Request ids of StopWorkspace.
    stops: dict[str, str | None] = field(default_factory=dict)
    # Each ended task as first seen after its end, and each intent as first seen.
    ends: dict[str, Task] = field(default_factory=dict)
    intents: dict[str, CancelIntent] = field(default_factory=dict)
    # What each task has used, as last seen.
    usages: dict[str, Usage] = field(default_factory=dict)
    # How many times a server has drained.
    drains: int = 0
    # Exceptions that must never be raised.
    defects: list[BaseException] = field(default_factory=list)
