"""The sequential model of one workspace: what each call does to it, and which answers are right.

A workspace has one task at a time. The first caller who cancels the task gets `accepted`. A task
ends `cancelled` if, and only if, its cancellation is recorded.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

CANCELLED = "cancelled"
TERMINAL = frozenset({"completed", "failed", CANCELLED, "delivery_failed"})
# Stands for a task whose submission was not answered and that no other call names.
UNKNOWN = "?"


class Phase(Enum):
    """The phase of the task that was submitted last."""

    # This is also the phase before the first task.
    ENDED = 0
    RUNNING = 1
    # The task runs, and its cancellation is recorded.
    ASKED = 2


class State(NamedTuple):
    """A workspace at one moment."""

    task: str = ""
    phase: Phase = Phase.ENDED
    # The ended tasks that open or later operations still name.
    ended: frozenset[str] = frozenset()
    held: bool = False
    deleted: bool = False


class Effect(Enum):
    """What a call does. If the call names no task, the operation's task is empty."""

    SUBMIT = "submit"
    SUBMIT_UNKNOWN = "submit unknown"
    # Records the first cancellation of the task.
    ACCEPT = "accept"
    # Records a cancellation, unless one is recorded already.
    ASK = "ask"
    # Cancels the task like ASK, but does nothing if the task has ended. The task must exist.
    SWEEP = "sweep"
    # Records the cancellation of the running task. Does nothing if no task is running.
    STOP = "stop"
    DELETE = "delete"
    HOLD = "hold"
    RELEASE = "release"


class Fact(NamedTuple):
    """What an answer says about a workspace at one moment."""

    # A key of FACTS.
    name: str
    task: str = ""
    # How the task ended, if the answer says how.
    status: str = ""


FACTS: Mapping[str, Callable[[State, str], bool]] = {
    "submitted": lambda state, task: task == state.task or task in state.ended,
    "running": lambda state, task: task == state.task and state.phase is Phase.RUNNING,
    "asked": lambda state, task: task == state.task and state.phase is Phase.ASKED,
    "active": lambda state, task: state.phase is not Phase.ENDED and task in ("", state.task),
    "ended": lambda state, task: task in state.ended,
    "asked or ended": lambda state, task: (
        task in state.ended or (task == state.task and state.phase is Phase.ASKED)
    ),
    "missing": lambda state, task: (
        state.deleted or (task != state.task and task not in state.ended)
    ),
    "last": lambda state, task: task == state.task,
    "no task": lambda state, _: state.phase is Phase.ENDED,
    "all asked": lambda state, _: state.phase is not Phase.RUNNING,
    "held": lambda state, _: state.held,
    "not held": lambda state, _: not state.held,
    "deleted": lambda state, _: state.deleted,
    "not deleted": lambda state, _: not state.deleted,
    "never": lambda *_: False,
}


@dataclass(slots=True, eq=False)
class Operation:
    """What a call does to one workspace (its effect), or says about it (its facts)."""

    # The call, or an event that a watcher or a webhook got.
    source: object
    began: float
    ended: float
    effect: Effect | None = None
    task: str = ""
    facts: tuple[Fact, ...] = ()
    # Whether it is possible that the call had no effect.
    is_optional: bool = False

    def tasks(self, *, known: bool = False) -> Iterator[str]:
        """The tasks that the operation names.

        With `known`, leaves out tasks that are missing according to the answer.
        """
        if self.task:
            yield self.task
        for fact in self.facts:
            if fact.task and not (known and fact.name == "missing"):
                yield fact.task

    def holds(self, state: State) -> bool:
        """Whether the operation's facts are true in this state."""
        return all(FACTS[name](state, task) for name, task, _ in self.facts)


@dataclass(frozen=True, slots=True)
class Known:
    """What calls say about the tasks of all workspaces."""

    # The tasks with limits, which the service itself may cancel.
    limited: frozenset[str] = frozenset()
    # The `seq` of each task's `task_submitted` event, if a caller got this event.
    seqs: Mapping[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Tasks:
    """What is known about the tasks of a workspace, from all its operations."""

    # How each task ended, if an answer says how.
    status: dict[str, str] = field(default_factory=dict)
    # The tasks that may be cancelled although no caller has asked: tasks with limits, and orphans.
    limited: frozenset[str] = frozenset()
    # For each orphan, which is a task without an answered submission: the earliest end of an
    # operation that names it. Orphans with a known `seq` come first, in the order of their `seq`.
    orphans: dict[str, float] = field(default_factory=dict)
    # The known `seq` of each task, from seqs_since_first.
    seqs: Mapping[str, int] = field(default_factory=dict)
    # For each task: how many operations that have not ended name it.
    uses: dict[str, int] = field(default_factory=dict)


def seqs_since_first(
    submitted: Iterable[str], tasks: Iterable[str], seqs: Mapping[str, int]
) -> dict[str, int]:
    """The known `seq` of each task, without tasks older than the first answered submission.

    Those tasks may be from before the history, so no call in it needs to have submitted them.
    """
    first = min((seqs[task] for task in submitted if task in seqs), default=math.inf)
    return {task: seqs[task] for task in tasks if task in seqs and seqs[task] >= first}


def after(state: State, operation: Operation, tasks: Tasks) -> Iterator[State]:
    """The states after the operation's effect; none if the effect is impossible in this state."""
    task, phase = operation.task, state.phase
    match operation.effect:
        case Effect.SUBMIT if _is_free(state) and not _is_submitted(task, state):
            if _is_next(task, state, tasks):
                yield state._replace(task=task, phase=Phase.RUNNING)
        case Effect.SUBMIT_UNKNOWN if _is_free(state):
            yield state._replace(task=UNKNOWN, phase=Phase.RUNNING)
            for orphan in possible_tasks(operation, tasks):
                if not _is_submitted(orphan, state) and _is_next(orphan, state, tasks):
                    yield state._replace(task=orphan, phase=Phase.RUNNING)
        case Effect.ACCEPT if phase is Phase.RUNNING and task == state.task:
            yield state._replace(phase=Phase.ASKED)
        case Effect.ASK if phase is not Phase.ENDED and task in ("", state.task):
            yield state._replace(phase=Phase.ASKED)
        case Effect.SWEEP if task == state.task or task in state.ended:
            yield _stopped(state) if task == state.task else state
        case Effect.STOP:
            yield _stopped(state)
        case Effect.DELETE:
            yield _stopped(state)._replace(deleted=True)
        case Effect.HOLD:
            yield state._replace(held=True)
        case Effect.RELEASE:
            yield state._replace(held=False)


def possible_tasks(submission: Operation, tasks: Tasks) -> Iterator[str]:
    """The tasks that a submission without an answer may have created and that other calls name."""
    for orphan, named in tasks.orphans.items():
        if submission.began <= named and tasks.uses[orphan]:
            yield orphan


def by_itself(state: State, tasks: Tasks) -> Iterator[State]:
    """The states after a change without a call: the task ends, or reaches a limit."""
    if state.phase is Phase.ENDED:
        return
    status = tasks.status.get(state.task, "")
    is_asked = state.phase is Phase.ASKED
    if not status or (status == CANCELLED) == is_asked:
        ended = state.ended | {state.task} if tasks.uses.get(state.task) else state.ended
        yield state._replace(phase=Phase.ENDED, ended=ended)
    if not is_asked and state.task in tasks.limited:
        yield state._replace(phase=Phase.ASKED)


def _is_submitted(task: str, state: State) -> bool:
    return task == state.task or task in state.ended


def _is_next(task: str, state: State, tasks: Tasks) -> bool:
    """Whether all orphans with a lower `seq` that operations still name have been submitted."""
    seq = tasks.seqs.get(task)
    if seq is None:
        return True
    for orphan in tasks.orphans:
        if tasks.uses[orphan] and not _is_submitted(orphan, state):
            return tasks.seqs.get(orphan, seq) >= seq
    return True


def _is_free(state: State) -> bool:
    return state.phase is Phase.ENDED and not state.held and not state.deleted


def _stopped(state: State) -> State:
    return state._replace(phase=Phase.ASKED) if state.phase is Phase.RUNNING else state
