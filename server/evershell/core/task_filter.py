"""Selects tasks of an organization: the tasks that match a filter, or all tasks.

A filter has at least one field, and `AllTasks` is a separate type, so no code can mistake an empty
filter for all tasks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from evershell.workspace.v1 import field_limits

from evershell.core.task import Task, TaskStatus
from evershell.core.validation import Fields

# The maximum length of `task_ids` and of `workspace_ids`.
MAX_IDS = field_limits.CANCEL_TASKS_FILTER_TASK_IDS_MAX
_MAX_ACTOR_CHARACTERS = field_limits.CANCEL_TASKS_FILTER_SUBMITTED_BY_MAX
_MAX_METADATA = field_limits.CANCEL_TASKS_FILTER_METADATA_MAX
_MAX_METADATA_KEY = field_limits.CANCEL_TASKS_FILTER_METADATA_MAX_KEY
_MAX_METADATA_VALUE = field_limits.CANCEL_TASKS_FILTER_METADATA_MAX_VALUE


@dataclass(frozen=True, slots=True)
class AllTasks:
    """Every task of the organization."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFilter:
    """A task matches if it matches every field that is not None.

    Raises Failure validation_error if no field is set, or if one is empty or not valid.
    """

    # Unknown ids match nothing.
    task_ids: tuple[str, ...] | None = None
    workspace_ids: tuple[str, ...] | None = None
    # Only tasks in workspaces that this user created.
    created_by_user_id: str | None = None
    # The id of the user or of the API key that submitted the task.
    submitted_by: str | None = None
    # Only tasks that were submitted before this time.
    submitted_before: datetime | None = None
    # Only tasks that have all of these entries.
    metadata: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        fields = Fields()
        if all(getattr(self, name) is None for name in self.__slots__):
            fields.reject("filter", "must have a field; `all`: true cancels every task")
        for name in ("task_ids", "workspace_ids"):
            _check_ids(fields, f"filter.{name}", getattr(self, name))
        for name in ("created_by_user_id", "submitted_by"):
            value = getattr(self, name)
            if value is not None:
                fields.text(
                    f"filter.{name}", value, max_characters=_MAX_ACTOR_CHARACTERS, required=True
                )
        _check_metadata(fields, self.metadata)
        fields.check()


TaskSelection = TaskFilter | AllTasks


def _check_ids(fields: Fields, name: str, ids: tuple[str, ...] | None) -> None:
    if ids is None:
        return
    _check_count(fields, name, len(ids), MAX_IDS)
    for each in ids:
        fields.identifier(name, each)


def _check_metadata(fields: Fields, metadata: Mapping[str, str] | None) -> None:
    if metadata is None:
        return
    name = "filter.metadata"
    _check_count(fields, name, len(metadata), _MAX_METADATA)
    for key, value in metadata.items():
        fields.text(name, key, max_characters=_MAX_METADATA_KEY, required=True)
        fields.text(name, value, max_characters=_MAX_METADATA_VALUE, required=True)


def _check_count(fields: Fields, name: str, count: int, most: int) -> None:
    if not 1 <= count <= most:
        fields.reject(name, f"has {count:,} entries; 1 to {most:,} are allowed")


@dataclass(frozen=True, slots=True, kw_only=True)
class ListFilter:
    """Which tasks of a workspace to list. A field that is None matches every task."""

    # Values of `Task.listed_status`.
    statuses: frozenset[TaskStatus] | None = None
    # Only tasks whose `changed_at` is this time or later.
    changed_since: datetime | None = None

    def matches(self, task: Task) -> bool:
        has_status = self.statuses is None or task.listed_status in self.statuses
        return has_status and (self.changed_since is None or task.changed_at >= self.changed_since)


EVERY_TASK = ListFilter()


@dataclass(frozen=True, slots=True, kw_only=True)
class OrgListFilter:
    """Which tasks of an organization to list. Raises Failure validation_error."""

    # An empty field matches all tasks. The fields have the same names as in ListTasksRequest.
    workspace_id: str = ""
    parent_task_id: str = ""
    root_task_id: str = ""
    workspace_ids: tuple[str, ...] = ()
    # Only tasks that have not ended.
    active: bool = False

    @property
    def is_of_workspace(self) -> bool:
        """Whether no field other than `workspace_id` is set."""
        return self == OrgListFilter(workspace_id=self.workspace_id)

    def __post_init__(self) -> None:
        fields = Fields()
        for name in ("workspace_id", "parent_task_id", "root_task_id"):
            if value := getattr(self, name):
                fields.identifier(name, value)
        fields.identifiers(
            "workspace_ids", self.workspace_ids, field_limits.LIST_TASKS_WORKSPACE_IDS_MAX
        )
        if self.workspace_ids and not (self.active or self.root_task_id or self.parent_task_id):
            fields.reject("workspace_ids", "needs `active`, `root_task_id` or `parent_task_id`")
        fields.check()

    def matches(self, task: Task) -> bool:
        """Whether the task passes the filter. The store has the same rule in SQL."""
        return (
            self.workspace_id in ("", task.workspace_id)
            and (not self.workspace_ids or task.workspace_id in self.workspace_ids)
            and self.parent_task_id in ("", task.parent_id)
            and self.root_task_id in ("", task.root_id)
            and not (self.active and task.status.is_terminal)
        )
