"""The queue of audit entries, in memory."""

from evershell.core.event import AuditEntry


class FakeAuditQueue:
    """Implements api.interceptors.auditing.Queue."""

    def __init__(self) -> None:
        self.entries: list[AuditEntry] = []
        # The ids of entries that the call itself may already have stored.
        self.uncertain: set[str] = set()
        self.lost = 0

    def put(self, entry: AuditEntry, *, uncertain: bool) -> None:
        self.entries.append(entry)
        if uncertain:
            self.uncertain.add(entry.id)

    def lose(self) -> None:
        self.lost += 1
