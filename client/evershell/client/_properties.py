"""The properties that some results and enums have in addition to the fields of their messages.

Each class with the suffix `Properties` is the base of the generated class without this suffix.
"""

from typing import Protocol, TypeVar

# Used in place of ToolCall. An import of ToolCall would be circular, because its module imports
# this module.
Call_co = TypeVar("Call_co", covariant=True)


class _Ends(Protocol):
    @property
    def has_ended(self) -> bool: ...


class TaskStatusProperties:
    """The properties of a TaskStatus."""

    @property
    def has_ended(self) -> bool:
        """Whether a task in this state never changes again."""
        return str(self) in ("completed", "failed", "cancelled", "delivery_failed")


class _Task(Protocol):
    @property
    def status(self) -> _Ends: ...


class TaskProperties:
    """The properties of a Task in addition to its fields."""

    __slots__ = ()

    @property
    def has_ended(self: _Task) -> bool:
        """Whether the task never changes again."""
        return self.status.has_ended


class _CancelResult(Protocol):
    @property
    def outcome(self) -> str: ...
    @property
    def task(self) -> _Ends | None: ...
    @property
    def is_recorded(self) -> bool: ...


class CancelResultProperties:
    """The properties of a CancelResult in addition to its fields."""

    __slots__ = ()

    @property
    def is_recorded(self: _CancelResult) -> bool:
        """Whether the cancellation is recorded, so that the task ends `cancelled`."""
        return self.outcome in ("accepted", "already_requested")

    @property
    def is_over(self: _CancelResult) -> bool:
        """Whether there is nothing to wait for: the task has ended, or no task was running."""
        return not self.is_recorded or (self.task is not None and self.task.has_ended)


class _IterationCompleted(Protocol[Call_co]):
    @property
    def tool_call(self) -> Call_co | None: ...
    @property
    def tool_calls(self) -> tuple[Call_co, ...]: ...


class IterationCompletedProperties:
    """The properties of an IterationCompleted in addition to its fields."""

    __slots__ = ()

    @property
    def all_tool_calls(self: _IterationCompleted[Call_co]) -> tuple[Call_co, ...]:
        """All tool calls, in the order in which they began."""
        return self.tool_calls or ((self.tool_call,) if self.tool_call else ())
