"""Which programs count as frozen: stopped or silent programs, but not slow ones."""

from dataclasses import dataclass
from functools import partial
from operator import eq

import pytest

from evershell.stack.frozen import SAMPLE_SECONDS, Finding, FrozenPrograms, Reason, Sample

# Seconds without a turn of the event loop: permitted for a starting program, but not for a running
# one.
LONG = 20
# Seconds without a turn of the event loop: too many even for a starting program.
VERY_LONG = 70


@dataclass(frozen=True)
class Second:
    """What a program does in one second.

    `turns` counts the turns of its event loop. `state` is its state in proc_pid_stat(5).
    """

    turns: int = 0
    processor_seconds: float = 0.0
    state: str = "S"


TURNS = Second(turns=2, processor_seconds=0.01)
SPINS = Second(processor_seconds=1.0, state="R")
BLOCKED = Second()
# This program waits for a processor nearly all the time.
STARVED = Second(processor_seconds=0.02, state="R")
# This program waits for its memory, which the machine has swapped out.
SWAPS = Second(processor_seconds=0.02, state="D")
STOPPED = Second(state="T")
TRACED = Second(state="t")


class Programs:
    """Programs whose behaviour in each second a test sets."""

    def __init__(self, *names: str) -> None:
        self.frozen = FrozenPrograms()
        self.now = 0.0
        self.samples = {name: Sample(name[:-1], 1, False, 0.0, 0, lambda: True) for name in names}
        self.found: list[Finding] = []
        self.look({}, 0.0)

    def do(self, seconds: int = LONG, period: float = SAMPLE_SECONDS, **doing: Second) -> None:
        """Lets `seconds` samples pass. `period` is the time between two samples."""
        for _ in range(seconds):
            self.look(doing, period)

    def look(self, doing: dict[str, Second], period: float) -> None:
        for name, second in doing.items():
            last = self.samples[name]
            self.samples[name] = Sample(
                last.kind,
                last.pid,
                second.state == "T",
                last.processor_seconds + second.processor_seconds,
                (last.turns or 0) + second.turns,
                partial(eq, second.state, "S"),
            )
        self.now += period
        for each in self.frozen.find(self.samples, self.now):
            self.found.append(each)
            if each.is_replaced:
                last = self.samples[each.name]
                self.samples[each.name] = Sample(
                    last.kind, last.pid + 1, False, 0.0, 0, lambda: True
                )

    @property
    def replaced(self) -> list[str]:
        return [each.name for each in self.found if each.is_replaced]

    @property
    def silent(self) -> list[str]:
        """The programs that are reported as silent, but not replaced."""
        return [each.name for each in self.found if not each.is_replaced]


@pytest.fixture
def workers() -> Programs:
    """Two workers that have begun to serve."""
    programs = Programs("w0", "w1")
    programs.do(2, w0=TURNS, w1=TURNS)
    return programs


@pytest.mark.parametrize(
    ("first", "second", "replaced", "silent"),
    [
        # One worker is silent, in a loop or at a lock, while the other one serves.
        (SPINS, TURNS, ["w0"], []),
        (BLOCKED, TURNS, ["w0"], []),
        (TURNS, SPINS, ["w1"], []),
        # One worker makes no turn, because it waits for a processor or for swapped memory.
        (STARVED, TURNS, [], ["w0"]),
        (SWAPS, TURNS, [], ["w0"]),
        # A debugger has stopped the program.
        (TRACED, TURNS, [], ["w0"]),
        # No other worker is serving.
        (SPINS, SPINS, [], ["w0", "w1"]),
        (BLOCKED, BLOCKED, [], ["w0", "w1"]),
        (BLOCKED, SPINS, [], ["w0", "w1"]),
        (STARVED, STARVED, [], ["w0", "w1"]),
        (TURNS, TURNS, [], []),
        # A stopped program is replaced even if no other program of its kind serves.
        (STOPPED, TURNS, ["w0"], []),
        (STOPPED, STOPPED, ["w0", "w1"], []),
        (STOPPED, STARVED, ["w0"], ["w1"]),
    ],
)
def test_two_workers(
    workers: Programs, first: Second, second: Second, replaced: list[str], silent: list[str]
) -> None:
    workers.do(2, w0=first, w1=second)
    if STOPPED in (first, second):
        assert workers.replaced == replaced
    workers.do(
        LONG, w0=TURNS if first is STOPPED else first, w1=TURNS if second is STOPPED else second
    )
    assert (workers.replaced, workers.silent) == (replaced, silent)


@pytest.mark.parametrize("slow", [SPINS, BLOCKED, STARVED])
def test_a_turn_now_and_then_is_enough(workers: Programs, slow: Second) -> None:
    for _ in range(10):
        workers.do(10, w0=slow, w1=TURNS)
        workers.do(1, w0=Second(turns=1), w1=TURNS)
    assert workers.found == []


@pytest.mark.parametrize("silence", [SPINS, BLOCKED, STARVED])
def test_a_program_that_is_the_only_one_of_its_kind_stays(silence: Second) -> None:
    programs = Programs("w0", "f0")
    programs.do(2, w0=TURNS, f0=TURNS)
    programs.do(VERY_LONG, w0=TURNS, f0=silence)
    assert (programs.replaced, programs.silent) == ([], ["f0"])
    # After some turns, the next silence is reported too.
    programs.do(1, w0=TURNS, f0=TURNS)
    programs.do(LONG, w0=TURNS, f0=silence)
    assert programs.silent == ["f0", "f0"]


def test_one_program_a_minute_is_replaced_for_its_silence() -> None:
    programs = Programs("w0", "w1", "w2", "f0", "f1")
    programs.do(2, w0=TURNS, w1=TURNS, w2=TURNS, f0=TURNS, f1=TURNS)
    programs.do(LONG, w0=SPINS, w1=SPINS, w2=TURNS, f0=BLOCKED, f1=TURNS)
    assert len(programs.replaced) == 1
    programs.do(30, w0=TURNS, w1=SPINS, w2=TURNS, f0=BLOCKED, f1=TURNS)
    assert len(programs.replaced) == 1
    # Stopped programs are replaced without a wait of a minute.
    programs.do(2, w0=STOPPED, w1=SPINS, w2=TURNS, f0=BLOCKED, f1=TURNS)
    assert programs.replaced == ["w0", "w0"]
    programs.do(130, w0=TURNS, w1=SPINS, w2=TURNS, f0=BLOCKED, f1=TURNS)
    assert sorted(set(programs.replaced)) == ["f0", "w0", "w1"]


def test_a_program_that_starts_has_more_time(workers: Programs) -> None:
    """A restarted program has not made any turn yet."""
    workers.do(2, w0=STOPPED, w1=TURNS)
    workers.do(LONG, w0=SPINS, w1=TURNS)
    assert workers.replaced == ["w0"]
    workers.do(VERY_LONG, w0=SPINS, w1=TURNS)
    assert workers.replaced == ["w0", "w0"]


def test_a_late_sample_says_nothing_of_a_blocked_program(workers: Programs) -> None:
    """The sample is late because the supervisor itself got no processor time."""
    workers.do(LONG, period=5 * SAMPLE_SECONDS, w0=BLOCKED, w1=TURNS)
    assert workers.found == []
    workers.do(2, period=5 * SAMPLE_SECONDS, w0=STOPPED, w1=TURNS)
    assert workers.replaced == ["w0"]


def test_processor_time_counts_in_late_samples_too(workers: Programs) -> None:
    workers.do(LONG, period=5 * SAMPLE_SECONDS, w0=SPINS, w1=TURNS)
    assert workers.replaced == ["w0"]


def test_a_program_of_which_nothing_is_known_is_only_looked_at_for_its_state() -> None:
    frozen = FrozenPrograms()
    for second in range(VERY_LONG):
        unknown = Sample("w", 1, False, float(second), None, lambda: True)
        other = Sample("w", 2, False, 0.0, second, lambda: True)
        assert frozen.find({"w0": unknown, "w1": other}, float(second)) == []
    stopped = Sample("w", 1, True, 0.0, None, lambda: True)
    found = [each for now in (1, 2) for each in frozen.find({"w0": stopped}, VERY_LONG + now)]
    assert [(each.name, each.reason) for each in found] == [("w0", Reason.STOPPED)]
