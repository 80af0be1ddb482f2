"""Faults of the service or the machine must not make the service end healthy agents or programs."""

from tests.faults.mutations.mutants import Rule, rule

_BOUNDS = "server/evershell/core/bounds.py"
_FROZEN = "server/evershell/stack/frozen.py"

HEALTHY: tuple[Rule, ...] = (
    rule(
        "nothing healthy is failed",
        "tests/unit/core/test_bounds.py tests/unit/fleet/test_due.py "
        "tests/unit/stack/test_frozen.py",
        # In this mutant, an outage does not postpone a bound.
        (
            _BOUNDS,
            "return now > max(bound, min(last_outage_at + recovery, bound + lease))",
            "return now > bound",
        ),
        # In this mutant, a silent worker does not count as an outage.
        (_BOUNDS, "SILENT_SECONDS < each < self.lease_seconds", "False"),
        # In this mutant, a silent program is replaced even if it is the last one of its kind.
        (_FROZEN, "is_silent and others > 0 and may_replace", "is_silent and may_replace"),
        # In this mutant, two programs may be replaced at once.
        (_FROZEN, "is_silent and others > 0 and may_replace", "is_silent and others > 0"),
    ),
)
