"""The sequential model of one workspace: what each call does to it, and which answers are right.

A workspace has one task at a time. Who asks first to cancel it gets `accepted`. A task that was
asked to end ends `cancelled`, and no other task does.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

CANCELLED = "cancelled"
TERMINAL = frozenset({"completed", "failed", CANCELLED, "delivery_failed"})
# The task of a submission that was not answered, if no other call names it.
UNKNOWN = "?"


class Phase(Enum):
    """The phase of the task that was submitted last."""

    # Also the phase before the first task.
    ENDED = 0
    RUNNING = 1
    # The task runs, and its cancellation is recorded.
    ASKED = 2


class State(NamedTuple):
    """A workspace at one moment."""

    task: str = ""
    phase: Phase = Phase.ENDED
    # The ended tasks that an open or later operation names.
    ended: frozenset[str] = frozenset()
    held: bool = False
    deleted: bool = False


class Effect(Enum):
    """What a call does. The task is empty if the call names none."""

    SUBMIT = "submit"
    SUBMIT_UNKNOWN = "submit unknown"
    # Records the first cancellation of the task.
    ACCEPT = "accept"
    # Records a cancellation, or finds one recorded.
    ASK = "ask"
    # Like ASK, but does nothing if the task has ended. The task must exist.
    SWEEP = "sweep"
    # Records the cancellation of the task that runs, if one does.
    STOP = "stop"
    DELETE = "delete"
    HOLD = "hold"
    RELEASE = "release"


class Fact(NamedTuple):
    """A fact that an answer tells about a workspace at one moment."""

    # A key of FACTS.
    name: str
    task: str = ""
    # How the task ended, if the answer says that.
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
    """What a call does to one workspace (an effect), or says about it (facts)."""

    # The call, or the event that a watcher or a webhook got.
    source: object
    began: float
    ended: float
    effect: Effect | None = None
    task: str = ""
    facts: tuple[Fact, ...] = ()
    # Whether the call may have had no effect.
    is_optional: bool = False

    def tasks(self, *, known: bool = False) -> Iterator[str]:
        """The tasks that the operation names. With `known`, leaves out tasks that the answer calls
        missing.
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

    # The tasks that the service itself may cancel.
    limited: frozenset[str] = frozenset()
    # The `seq` of the event with which each task began. It is known if a caller got the event.
    seqs: Mapping[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Tasks:
    """What is known about the tasks of a workspace, from all its operations."""

    # How each task ended, if an answer says that.
    status: dict[str, str] = field(default_factory=dict)
    # The tasks that the service itself may cancel.
    limited: frozenset[str] = frozenset()
    # Maps each task without an answered submission to the end of the first operation that names it.
    # Tasks whose `seq` is known come in the order of their `seq`.
    orphans: dict[str, float] = field(default_factory=dict)
    # What seqs_since_first returns.
    seqs: Mapping[str, int] = field(default_factory=dict)
    # How many open or later operations name each task.
    uses: dict[str, int] = field(default_factory=dict)


def seqs_since_first(
    submitted: Iterable[str], tasks: Iterable[str], seqs: Mapping[str, int]
) -> dict[str, int]:
    """The known `seq` of each task, from the first answered submission on.

    Tasks with a lower `seq` may be from before the history, so no call of it has to explain them.
    """
    first = min((seqs[task] for task in submitted if task in seqs), default=math.inf)
    return {task: seqs[task] for task in tasks if task in seqs and seqs[task] >= first}


def after(state: State, operation: Operation, tasks: Tasks) -> Iterator[State]:
    """The states after the operation's effect; none if it cannot have that effect now."""
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
    """The named tasks that a submission without an answer may have created."""
    for orphan, named in tasks.orphans.items():
        if submission.began <= named and tasks.uses[orphan]:
            yield orphan


def by_itself(state: State, tasks: Tasks) -> Iterator[State]:
    """The states after a change that needs no call: the task ends, or reaches a limit."""
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
    """Whether no task that began before this one, by their events, is still to be submitted."""
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
