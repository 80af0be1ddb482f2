"""Selects workspaces of an organization, like task_filter.py selects tasks."""

from dataclasses import dataclass

from evershell.workspace.v1 import field_limits

from evershell.core.validation import Fields
from evershell.core.workspace import Workspace

_MAX_IDS = field_limits.RESUME_WORKSPACES_FILTER_WORKSPACE_IDS_MAX
_MAX_USER_CHARACTERS = field_limits.RESUME_WORKSPACES_FILTER_CREATED_BY_USER_ID_MAX


@dataclass(frozen=True, slots=True)
class AllWorkspaces:
    """Every workspace of the organization."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkspaceFilter:
    """A workspace matches if it matches every field that is not None.

    Raises Failure validation_error if no field is set, or if one is empty or not valid.
    """

    # Unknown ids match nothing.
    workspace_ids: tuple[str, ...] | None = None
    created_by_user_id: str | None = None

    def __post_init__(self) -> None:
        fields = Fields()
        if self.workspace_ids is None and self.created_by_user_id is None:
            fields.reject("filter", "must have a field; `all`: true resumes every failed workspace")
        if self.workspace_ids is not None:
            fields.identifiers("filter.workspace_ids", self.workspace_ids, _MAX_IDS)
            if not self.workspace_ids:
                fields.reject("filter.workspace_ids", "must not be empty")
        if self.created_by_user_id is not None:
            fields.text(
                "filter.created_by_user_id",
                self.created_by_user_id,
                max_characters=_MAX_USER_CHARACTERS,
                required=True,
            )
        fields.check()

    def matches(self, workspace: Workspace) -> bool:
        """Whether the workspace passes the filter. The store has the same rule in SQL."""
        has_id = self.workspace_ids is None or workspace.id in self.workspace_ids
        return has_id and self.created_by_user_id in (None, workspace.created_by_user_id)


WorkspaceSelection = WorkspaceFilter | AllWorkspaces
