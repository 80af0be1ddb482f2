"""Records what a store publishes."""


class Published:
    """Implements store.publish.Publish."""

    def __init__(self) -> None:
        # The ids of the published workspaces, in order.
        self.ids: list[str] = []
        # The ids of workspaces for which watchers in other processes may wait.
        self.watched: list[str] = []
        # The ids of workspaces on which the fleet controller must act.
        self.to_reconcile: list[str] = []

    def __call__(self, workspace_id: str, *, watched: bool, reconcile: bool) -> None:
        self.ids.append(workspace_id)
        if watched:
            self.watched.append(workspace_id)
        if reconcile:
            self.to_reconcile.append(workspace_id)

    def clear(self) -> None:
        """Forgets all records."""
        for ids in (self.ids, self.watched, self.to_reconcile):
            ids.clear()
