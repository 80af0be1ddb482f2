"""Two workers compared with one: what a call costs if both workers serve calls."""

from bench import windows
from bench.figures import Figures, Row, at_most, figure, ratio
from bench.plan import Block, Measure, Setting, Window
from bench.side import Side

_CALLERS = 16


def blocks(quick: bool) -> list[Block]:
    """One block."""
    return [
        Block(
            name="workers",
            windows=[
                Window("one", windows.cancel(_CALLERS, 1.5)),
                Window("two", _two_workers(1.5)),
            ],
            rows=[
                Row(
                    name="two workers ÷ one, CPU for a CancelTask over gRPC, 16 callers",
                    unit="×",
                    value=ratio("cpu_us", "two", "one"),
                    target=at_most(1.05),
                ),
                Row(
                    name="two workers ÷ one, CancelTask over gRPC, 16 callers, calls/s",
                    unit="×",
                    value=ratio("per_second", "two", "one"),
                    less_is_better=False,
                ),
                *_absolute_rows("one", "one worker"),
                *_absolute_rows("two", "two workers"),
            ],
            rounds=5,
            quick_rounds=0,
        )
    ]


def _absolute_rows(window: str, workers: str) -> list[Row]:
    return [
        Row(
            name=f"CancelTask over gRPC, {workers}, {_CALLERS} callers, throughput",
            unit="calls/s",
            value=figure("per_second", window),
            less_is_better=False,
        ),
        Row(
            name=f"CPU of {workers} for a CancelTask over gRPC, {_CALLERS} callers",
            unit="µs",
            value=figure("cpu_us", window),
        ),
    ]


def _two_workers(seconds: float) -> Measure:
    def measure(setting: Setting, side: Side) -> Figures:
        with side.second_worker(setting.folder / "second-worker.log") as (address, pid):
            agents, pids = setting.agent_addresses, [*side.worker_pids, pid]
            connections = [side.connect("CancelTask", address=each) for each in (None, address)]
            # The second worker opens a stream to each agent before the measurement.
            windows.cancel_each(side.database, side.tasks.next(agents), connections[1:], _CALLERS)
            return windows.cancelled(side, agents, connections, _CALLERS, seconds, pids)

    return measure
