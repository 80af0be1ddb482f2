"""What the bench measures: blocks of windows that run in turn, and the rows made from them."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench.arming import RunningTasks
from bench.figures import Figures, Row
from bench.side import Side


@dataclass(slots=True)
class Setting:
    """What all windows (periods of measurement) share."""

    sides: Sequence[Side]
    floor_address: str
    floor_pid: int
    # The tasks in the floor's own tables.
    floor_tasks: RunningTasks
    # The addresses of the simulated agents. A worker can keep a stream to each of them.
    agent_addresses: Sequence[str]
    # The ids of the rows that the floor reads and updates.
    row_ids: Sequence[str]
    quick: bool
    # The folder for logs.
    folder: Path
    # What must be closed at the end of the run.
    resources: ExitStack

    @property
    def agent_address(self) -> str:
        """The address of an agent, for windows that do not depend on the number of agents."""
        return self.agent_addresses[0]

    @property
    def home(self) -> Side:
        """The side of this checkout. The floor has a schema in the database of this side."""
        return self.sides[-1]


Measure = Callable[[Setting, Side], Figures]


@dataclass(frozen=True, slots=True)
class Window:
    """One measurement, taken in each round."""

    name: str
    measure: Measure
    # Whether one result counts for all sides, as for the floor. Such a window runs only once in
    # each round.
    is_shared: bool = False


def never_skipped(setting: Setting) -> str:
    """The default of Block.skipped_because: the block always runs."""
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Windows that are compared with each other. A round runs them one after the other."""

    name: str
    windows: Sequence[Window]
    rows: Sequence[Row]
    rounds: int
    # 0 leaves the block out of the quick run.
    quick_rounds: int
    # Whether the fleet controller must lead. Such blocks run first, because the controller is a
    # standby for all other blocks.
    needs_controller: bool = False
    # The reason why the block cannot run; empty if it can.
    skipped_because: Callable[[Setting], str] = field(default=never_skipped)
