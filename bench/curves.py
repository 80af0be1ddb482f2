"""The pictures in docs/scale.md, and the rows of bench.json that each picture shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench import size
from bench.idle_fleet import WORKSPACES

# Maps the name of a row to its median, its smallest and its largest value.
Measured = Mapping[str, tuple[float, float, float]]

_CALLERS = {"1": "1 caller", "4": "4 callers", "16": "16 callers", "64": "64 callers"}
_WORKERS = {"1": "one worker", "2": "two workers"}
_SIZES = {"few": "few events", f"{size.EVENTS:,}": f"{size.EVENTS:,} events"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A line in a picture. The table of the picture contains the same values."""

    label: str
    unit: str
    # For each value on the horizontal axis, the names of the rows whose sum is shown.
    points: Mapping[str, Sequence[str]]
    # The factor by which the sum is multiplied.
    factor: float = 1

    def median(self, measured: Measured, x: str) -> float | None:
        """The value at x; None if a row is missing."""
        if any(row not in measured for row in self.points.get(x, [""])):
            return None
        return sum(measured[row][0] for row in self.points[x]) * self.factor

    def range(self, measured: Measured, x: str) -> tuple[float, float] | None:
        """The smallest and the largest value at x; None for sums and missing rows."""
        rows = self.points.get(x, [])
        if len(rows) != 1 or rows[0] not in measured:
            return None
        _, smallest, largest = measured[rows[0]]
        return smallest * self.factor, largest * self.factor

    def missing(self, measured: Measured) -> list[str]:
        """The rows that have not been measured."""
        return [row for rows in self.points.values() for row in rows if row not in measured]

    def has_values(self, measured: Measured) -> bool:
        """Whether at least one point has been measured."""
        return any(self.median(measured, x) is not None for x in self.points)

    def is_drawn(self, measured: Measured) -> bool:
        """Whether the curve has at least two points. The table also shows all other curves."""
        return sum(self.median(measured, x) is not None for x in self.points) > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture with a panel for each unit, and a table. The horizontal axis is not to scale."""

    # The file name without its suffix.
    name: str
    title: str
    axis: str
    curves: Sequence[Curve]

    @property
    def values(self) -> list[str]:
        """The values on the horizontal axis."""
        return list(dict.fromkeys(x for curve in self.curves for x in curve.points))

    def missing(self, measured: Measured) -> list[str]:
        """The rows that have not been measured."""
        found = [row for curve in self.curves for row in curve.missing(measured)]
        return list(dict.fromkeys(found))

    def panels(self, measured: Measured) -> dict[str, list[Curve]]:
        """The curves that are drawn, by unit."""
        panels: dict[str, list[Curve]] = {}
        for curve in self.curves:
            if curve.is_drawn(measured):
                panels.setdefault(curve.unit, []).append(curve)
        return panels


def _rows(template: str, names: Mapping[str, str]) -> dict[str, list[str]]:
    return {x: [template.format(name)] for x, name in names.items()}


_WORKER, _POSTGRES = (
    _rows(f"CPU of {program} for a CancelTask over gRPC, {{}}", _CALLERS)
    for program in ("the worker", "PostgreSQL")
)

PICTURES = (
    Picture(
        name="callers",
        title="Callers",
        axis="callers that call CancelTask at the same time, one worker",
        curves=[
            Curve(
                label="throughput",
                unit="calls/s",
                points=_rows("CancelTask over gRPC, {}, throughput", _CALLERS),
            ),
            Curve(label="p50", unit="ms", points=_rows("CancelTask over gRPC, {}, p50", _CALLERS)),
            Curve(label="CPU of the worker for a call", unit="µs", points=_WORKER),
            Curve(label="CPU of PostgreSQL for a call", unit="µs", points=_POSTGRES),
            Curve(
                label="for 1,000 cancellations a second",
                unit="cores",
                points={x: [*_WORKER[x], *_POSTGRES[x]] for x in _CALLERS},
                # Converts µs of processor time per call to cores at 1,000 calls a second.
                factor=1_000 / 1e6,
            ),
        ],
    ),
    Picture(
        name="workers",
        title="Workers",
        axis="workers, 16 callers of CancelTask",
        curves=[
            Curve(
                label="throughput",
                unit="calls/s",
                points=_rows("CancelTask over gRPC, {}, 16 callers, throughput", _WORKERS),
            ),
            Curve(
                label="CPU of the workers for a call",
                unit="µs",
                points=_rows("CPU of {} for a CancelTask over gRPC, 16 callers", _WORKERS),
            ),
        ],
    ),
    Picture(
        name="events",
        title="Tasks and events",
        axis="events in the database, with a task for every five; 1 caller of CancelTask",
        curves=[
            Curve(
                label="p50",
                unit="ms",
                points=_rows("CancelTask over gRPC at {}, 1 caller, p50", _SIZES),
            ),
            Curve(
                label="CPU of PostgreSQL for a call",
                unit="µs",
                points=_rows(
                    "CPU of PostgreSQL for a CancelTask over gRPC at {}, 1 caller", _SIZES
                ),
            ),
        ],
    ),
    Picture(
        name="watchers",
        title="Watchers",
        axis="idle watchers on one worker, 1 caller of CancelTask",
        curves=[
            Curve(
                label="p50",
                unit="ms",
                points={
                    x: [f"CancelTask over gRPC with {x} idle watchers, 1 caller, p50"]
                    for x in ("0", "100", "1,000")
                },
            ),
            Curve(
                label="memory of the worker for a watcher",
                unit="kB",
                points={"1,000": ["memory of the worker for an idle watcher"]},
            ),
        ],
    ),
    Picture(
        name="agents",
        title="Idle agents",
        axis="workspaces with an idle agent",
        curves=[
            Curve(
                label="worker, controller and PostgreSQL for an agent",
                unit="core/1000",
                points={
                    f"{count:,}": [f"control-plane CPU for an idle agent, {count:,} workspaces"]
                    for count in WORKSPACES
                },
            ),
            Curve(
                label="private memory of an agent",
                unit="MB",
                points={"100": ["private memory of an idle agent"]},
            ),
        ],
    ),
)
