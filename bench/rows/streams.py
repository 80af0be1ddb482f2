"""Many agents: the memory of a worker that signals them, and the cost of the first signals."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

from bench import arming, processes, windows
from bench.figures import Figures, Row, at_most, figure, ratio
from bench.plan import Block, Measure, Setting, Window
from bench.processes import private_bytes
from bench.servers.agent import addresses
from bench.side import Side

_MANY, _FEW = 5_000, 400


def blocks(quick: bool) -> list[Block]:
    """One block."""
    return [
        Block(
            name="streams to agents",
            windows=[
                Window("memory", _memory),
                Window("first", _signals(1)),
                Window("later", _signals(2)),
            ],
            rows=[
                Row(
                    name=f"memory of a worker that has signalled {_MANY:,} agents",
                    unit="MB",
                    value=figure("megabytes", "memory"),
                    target=at_most(50),
                ),
                Row(
                    name="CancelTask over gRPC, first signal to an agent ÷ later, 1 caller, p50",
                    unit="×",
                    value=ratio("p50", "first", "later"),
                    target=at_most(1.2),
                ),
            ],
            rounds=2,
            quick_rounds=0,
        )
    ]


def _memory(setting: Setting, side: Side) -> Figures:
    """Measures a new worker, because earlier windows have increased the memory of other workers."""
    with (
        _agents(setting, _MANY) as many,
        side.second_worker(setting.folder / "signalling-worker.log") as (address, pid),
    ):
        # Not measured: the first calls also load code and open connections to the database.
        _cancel(side, many[:1] * 100, address)
        before = private_bytes(pid)
        _cancel(side, many, address)
        return {"megabytes": (private_bytes(pid) - before) / 1e6}


def _signals(number: int) -> Measure:
    """Measures CancelTask. Each call signals a different agent, for the `number`-th time."""

    def measure(setting: Setting, side: Side) -> Figures:
        with _agents(setting, _FEW) as few, closing(side.connect("CancelTask")) as connection:
            tasks = side.arm(len(few), *few)
            for _ in range(number - 1):
                windows.cancel_each(side.database, tasks, [connection], 1)
                tasks = arming.arm_again(side.database, tasks)
            return windows.cancel_each(side.database, tasks, [connection], 1).figures()

    return measure


def _cancel(side: Side, agents: Sequence[str], address: str) -> None:
    """Cancels one task of each agent."""
    with closing(side.connect("CancelTask", address=address)) as connection:
        windows.cancel_each(side.database, side.arm(len(agents), *agents), [connection], 4)


@contextmanager
def _agents(setting: Setting, count: int) -> Iterator[list[str]]:
    """Runs agents inside the block. Yields their addresses."""
    port = processes.free_port()
    log = setting.folder / "agents.log"
    with processes.running("bench.servers.agent", port, str(count), log=log):
        yield addresses(port, count)
