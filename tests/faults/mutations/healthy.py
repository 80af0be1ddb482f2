"""What a fault of the service or of the machine must not do to agents and programs."""

from tests.faults.mutations.mutants import Rule, rule

_BOUNDS = "server/evershell/core/bounds.py"
_FROZEN = "server/evershell/stack/frozen.py"

HEALTHY: tuple[Rule, ...] = (
    rule(
        "nothing healthy is failed",
        "tests/unit/core/test_bounds.py tests/unit/fleet/test_due.py "
        "tests/unit/stack/test_frozen.py",
        # An outage does not postpone a bound.
        (
            _BOUNDS,
            "return now > max(bound, min(last_outage_at + recovery, bound + lease))",
            "return now > bound",
        ),
        # A silent worker is not an outage.
        (_BOUNDS, "SILENT_SECONDS < each < self.lease_seconds", "False"),
        # The last program of its kind is replaced because it is silent.
        (_FROZEN, "is_silent and others > 0 and may_replace", "is_silent and may_replace"),
        # Two are replaced at once.
        (_FROZEN, "is_silent and others > 0 and may_replace", "is_silent and others > 0"),
    ),
)
