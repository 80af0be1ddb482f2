"""What a fault of the service must not do to agents."""

from tests.faults.mutations.mutants import Rule, rule

_CORE = "server/evershell/core/"
_FLEET = "server/evershell/fleet/"

HEALTHY: tuple[Rule, ...] = (
    rule(
        "nothing healthy is failed",
        "tests/unit/fleet/test_due.py",
        # An outage does not postpone a bound.
        (
            f"{_CORE}bounds.py",
            "return max(bound, min(answering_since + RECOVERY_MARGIN, latest))",
            "return bound",
        ),
        # A scan that failed is no outage.
        (
            f"{_FLEET}controller.py",
            "                    self._overdue.answering_since = self._clock()\n",
            "",
        ),
    ),
)
