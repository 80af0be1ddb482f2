"""Which tasks of an organization a call is about."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from evershell.workspace.v1 import field_limits

from evershell.server.core.validation import Fields

MAX_WORKSPACE_IDS = field_limits.CANCEL_TASKS_FILTER_WORKSPACE_IDS_MAX
_MAX_ACTOR_CHARACTERS = field_limits.CANCEL_TASKS_FILTER_SUBMITTED_BY_MAX
_MAX_METADATA = field_limits.CANCEL_TASKS_FILTER_METADATA_MAX
_MAX_METADATA_KEY = field_limits.CANCEL_TASKS_FILTER_METADATA_MAX_KEY
_MAX_METADATA_VALUE = field_limits.CANCEL_TASKS_FILTER_METADATA_MAX_VALUE


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFilter:
    """A task matches if it matches every field. Empty fields match all."""

    workspace_ids: tuple[str, ...] = ()
    # The creator of the workspace.
    created_by_user_id: str = ""
    # The user's id, or the API key's.
    submitted_by: str = ""
    # Only tasks that were submitted before this time.
    submitted_before: datetime | None = None
    # Only tasks that have all of these entries.
    metadata: Mapping[str, str] = field(default_factory=dict)

    def check(self, fields: Fields) -> None:
        """Adds the problems of the filter."""
        if len(self.workspace_ids) > MAX_WORKSPACE_IDS:
            count = len(self.workspace_ids)
            problem = f"has {count:,} entries; at most {MAX_WORKSPACE_IDS:,} are allowed"
            fields.reject("filter.workspace_ids", problem)
        for workspace_id in self.workspace_ids:
            fields.identifier("filter.workspace_ids", workspace_id)
        for name in ("created_by_user_id", "submitted_by"):
            value = getattr(self, name)
            fields.text(f"filter.{name}", value, max_characters=_MAX_ACTOR_CHARACTERS)
        if len(self.metadata) > _MAX_METADATA:
            problem = f"has {len(self.metadata)} entries; at most {_MAX_METADATA} are allowed"
            fields.reject("filter.metadata", problem)
        for key, value in self.metadata.items():
            fields.text("filter.metadata", key, max_characters=_MAX_METADATA_KEY, required=True)
            fields.text("filter.metadata", value, max_characters=_MAX_METADATA_VALUE)
