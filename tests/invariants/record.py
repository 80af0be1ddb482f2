"""What was observed of a run: everything that the invariants are checked from, beside the rows of
the database.
"""

import asyncio
from dataclasses import dataclass, field
from datetime import datetime

from server.core.caller import Caller
from server.core.cancel_task import CancelResult
from server.core.task import CancelIntent, Task


@dataclass(slots=True, kw_only=True)
class Call:
    """One call of CancelTask, and what became of it."""

    request_id: str
    by: Caller
    asked_at: datetime
    # The task that it is about: the one it names, or the current one at that moment.
    target_id: str | None
    wait_seconds: float | None
    # How long its signal may be under way.
    signal_seconds: float
    force_at: datetime | None
    # The answers that are right for what the database held before; None: the database fails
    # meanwhile.
    expected: frozenset[str] | None
    # How many times the server had begun to drain.
    drains_before: int
    runner: "asyncio.Task[CancelResult]"
    # Noted the moment the answer is there. The outcome, or the slug of the failure; empty until
    # then.
    answer: str = ""
    details: dict[str, object] = field(default_factory=dict)
    answered_at: datetime | None = None
    # What another session of the database saw of the target at that moment.
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
    """A cancellation on its way to an agent, and whether another session of the database saw its
    intent at that moment.
    """

    task_id: str
    was_recorded: bool


@dataclass(slots=True, kw_only=True)
class Iteration:
    """An iteration as the agent's model and tool saw it."""

    epoch: int
    task_id: str
    number: int
    # The agent had been told of the cancellation before it began: by a signal, or by what the
    # database held at its last call.
    was_told: bool
    # What the model has said so far.
    content: str = ""
    # A final reply, an error, or neither.
    is_final: bool = False
    failed: bool = False
    # None: no tool was called; empty: its result is not there.
    tool_output: str | None = None
    # The call that was broken off, and whether that was right at that moment.
    broken_off: str = ""
    may_break_off: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """A reply that an agent got from the control plane."""

    epoch: int
    # The epoch was over when the call was sent.
    was_over: bool
    # The task of the call was open and its intent recorded when the call was sent, and it is still
    # open.
    was_recorded: bool
    says_fenced: bool
    says_cancelled: bool


@dataclass(slots=True)
class Record:
    """Of one run."""

    calls: list[Call] = field(default_factory=list)
    signals: list[Signal] = field(default_factory=list)
    iterations: list[Iteration] = field(default_factory=list)
    hops: list[Hop] = field(default_factory=list)
    # Tasks that their own agent has ended, with the epoch.
    ended_by_agent: dict[str, int] = field(default_factory=dict)
    # Tasks whose end an agent has proposed, committed or not.
    ends_proposed: set[str] = field(default_factory=set)
    # Tasks that an agent has called cancelled without any intent on record.
    unasked: list[str] = field(default_factory=list)
    # Submits that an idle agent in good order did not take.
    refused_submits: list[str] = field(default_factory=list)
    # Request ids of StopWorkspace.
    stops: dict[str, str | None] = field(default_factory=dict)
    # How each task that has ended stood when that was first seen, and the intent of each as first
    # seen.
    ends: dict[str, Task] = field(default_factory=dict)
    intents: dict[str, CancelIntent] = field(default_factory=dict)
    # How many times a server has drained.
    drains: int = 0
    # What should never be raised.
    defects: list[BaseException] = field(default_factory=list)
