"""The same service on a large database, compared with a nearly empty one."""

from bench import arming, size, windows
from bench.figures import Figures, Row, at_most, figure, ratio
from bench.plan import Block, Measure, Setting, Window
from bench.side import Side


def blocks(quick: bool) -> list[Block]:
    """One block."""
    seconds = 1.0
    return [
        Block(
            name="large database",
            windows=[
                Window("empty", windows.cancel(1, seconds)),
                Window("large", _on_large_database(windows.cancel(1, seconds))),
            ],
            rows=[
                Row(
                    name=f"CancelTask over gRPC at {size.EVENTS:,} events ÷ few, 1 caller, p50",
                    unit="×",
                    value=ratio("p50", "large", "empty"),
                    target=at_most(1.05),
                ),
                Row(
                    name=f"CancelTask over gRPC at {size.EVENTS:,} events ÷ few, CPU of PostgreSQL",
                    unit="×",
                    value=ratio("postgres_us", "large", "empty"),
                ),
                *_absolute_rows("empty", "few events"),
                *_absolute_rows("large", f"{size.EVENTS:,} events"),
            ],
            rounds=7,
            quick_rounds=0,
            skipped_because=_skipped_because,
        )
    ]


def _absolute_rows(window: str, events: str) -> list[Row]:
    return [
        Row(
            name=f"CancelTask over gRPC at {events}, 1 caller, p50",
            unit="ms",
            value=figure("p50", window),
        ),
        Row(
            name=f"CPU of PostgreSQL for a CancelTask over gRPC at {events}, 1 caller",
            unit="µs",
            value=figure("postgres_us", window),
        ),
    ]


def _skipped_because(setting: Setting) -> str:
    if len(setting.sides) > 1:
        return "only one side has it"
    if not size.is_built():
        return "build it once with `python -m bench.size`"
    return ""


def _on_large_database(measured: Measure) -> Measure:
    """Measures a second stack, which has the large database. The first window starts it."""
    started: list[Side] = []

    def measure(setting: Setting, side: Side) -> Figures:
        if not started:
            large = Side("large", state_dir=size.state_dir())
            setting.resources.callback(large.stop)
            large.start()
            large.take_leadership()
            # Removes the workspaces of an earlier run.
            arming.remove(large.database)
            started.append(large)
        return measured(setting, started[0])

    return measure
