"""Which events webhooks get, in which order, and at which addresses."""

from tests.faults.mutations.mutants import Rule, rule

_STORE = "server/evershell/store/"
_WEBHOOKS = "server/evershell/features/webhooks/"
_DELIVERY = "tests/unit/webhooks/test_deliverer.py tests/faults/long/webhooks"
_ADDRESSES = "tests/unit/webhooks/test_sender.py tests/faults/long/webhooks"

DELIVERING: tuple[Rule, ...] = (
    rule(
        "a webhook gets each event of a task, in order",
        _DELIVERY,
        (
            f"{_WEBHOOKS}deliverer.py",
            "            if answer.error:\n                return self._failed",
            "            if False:\n                return self._failed",
        ),
        (
            f"{_WEBHOOKS}deliveries.sql",
            "    ORDER BY seq LIMIT {max_events}\n",
            "    ORDER BY seq DESC LIMIT {max_events}\n",
        ),
        (
            f"{_WEBHOOKS}deliveries.sql",
            "SET last_seq = EXCLUDED.last_seq,",
            "SET last_seq = d.last_seq,",
        ),
    ),
    rule(
        "an event that is committed after later ones is read too",
        "tests/contracts/test_store_webhooks.py",
        (f"{_STORE}event_log.py", "if row.whole == row.last:", "if True:"),
        (
            f"{_STORE}event_log.py",
            "row.whole if self._writers.transactions else row.last",
            "row.last",
        ),
        (
            f"{_STORE}event_log.py",
            "is_blocked = not self._writers.transactions.isdisjoint(",
            "is_blocked = self._writers.transactions.isdisjoint(",
        ),
    ),
    rule(
        "no event is lost when the lease of a claim ends",
        _DELIVERY,
        (
            f"{_WEBHOOKS}deliveries.sql",
            "SET claim = %(claim)s, due_at = %(leased_until)s",
            "SET claim = %(claim)s, due_at = NULL",
        ),
    ),
    rule(
        "a webhook is called only at allowed addresses",
        _ADDRESSES,
        (
            f"{_WEBHOOKS}sender.py",
            "if not may_call(ipaddress.ip_address(host), scheme, self._allowed_networks):",
            "if False:",
        ),
        (f"{_WEBHOOKS}sender.py", "allow_redirects=False", "allow_redirects=True"),
    ),
)
