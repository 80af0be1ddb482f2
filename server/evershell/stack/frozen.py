"""Decides which programs of a stack are frozen, from a sample of each program once a second.

A program is frozen if it is stopped (state T), or if it is silent: its event loop makes no turn,
and the machine is not the reason. A silent program either got enough processor time for many turns,
or was blocked while another program of its kind made many turns.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from evershell.telemetry.turns import TURN_SECONDS

# The interval between samples.
SAMPLE_SECONDS = 1.0
# A program that is stopped in this many samples in a row is frozen.
_STOPPED_SAMPLES = 2
# A program is silent if it makes no turn while it uses this much processor time, or while another
# program makes as many turns as an idle event loop makes in this time. Some calls of libraries
# block an event loop for seconds.
_SILENT_SECONDS = 15.0
_SILENT_TURNS = _SILENT_SECONDS / TURN_SECONDS
# A program that starts may take this many times as long for its first turn.
_START_FACTOR = 4
# At most one program is replaced because of its silence in this time.
_REPLACEMENT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Sample:
    """The observed state of a process."""

    # Programs of one kind do the same work.
    kind: str
    pid: int
    # State T of proc_pid_stat(5). A process that a debugger holds has state t, and is not frozen.
    is_stopped: bool
    # The processor time of the process since its start.
    processor_seconds: float
    # The turns of its event loop since its start, or its answers if the program does not count
    # turns. None if nothing is known.
    turns: int | None
    # Whether all of its threads wait for something other than a processor or a disk.
    is_blocked: Callable[[], bool]


class Reason(Enum):
    """Why a program is frozen."""

    STOPPED = "stopped"
    SILENT = "silent"


@dataclass(frozen=True, slots=True)
class Finding:
    """A program that is frozen, or that is silent and must stay.

    A silent program stays if no other program of its kind serves, if a silent program was replaced
    within the last minute, or if it may be waiting for the machine.
    """

    name: str
    reason: Reason
    # Whether the program is replaced.
    is_replaced: bool
    # The time without a turn.
    seconds: float = 0.0
    # The processor time that the program used without making a turn.
    processor_seconds: float = 0.0


@dataclass(slots=True)
class _Seen:
    """What has been observed of a process since its last turn."""

    pid: int
    # The processor time of the process at its last turn.
    processor_seconds: float
    turns: int = 0
    # The time without a turn.
    silent_seconds: float = 0.0
    # The turns that another program of its kind made while this one was blocked.
    missed_turns: int = 0
    is_reported: bool = False
    # In how many samples in a row the process was stopped.
    stopped_samples: int = 0


@dataclass(slots=True)
class FrozenPrograms:
    """Follows the programs of a stack from sample to sample."""

    _seen: dict[str, _Seen] = field(default_factory=dict)
    _sampled_at: float | None = None
    # When a program was last replaced because of its silence.
    _replaced_at: float | None = None

    def find(self, samples: Mapping[str, Sample], now: float) -> list[Finding]:
        """Takes the next samples, by the names of the programs, and returns the findings.

        `now` is in monotonic seconds. If the last samples were more than two intervals ago, the
        caller itself got no processor time, so the time since then says nothing about the programs.
        """
        since = now - self._sampled_at if self._sampled_at is not None else 0.0
        self._sampled_at = now
        is_late = since > 2 * SAMPLE_SECONDS
        self._seen = {
            name: self._seen[name]
            if name in self._seen and self._seen[name].pid == sample.pid
            else _Seen(sample.pid, sample.processor_seconds)
            for name, sample in samples.items()
        }
        gained = {name: self._take_turns(name, sample) for name, sample in samples.items()}
        found = []
        for name, sample in samples.items():
            seen = self._seen[name]
            seen.stopped_samples = seen.stopped_samples + 1 if sample.is_stopped else 0
            if seen.stopped_samples >= _STOPPED_SAMPLES:
                found.append(Finding(name, Reason.STOPPED, is_replaced=True))
            elif sample.turns is not None and gained[name] == 0 and not sample.is_stopped:
                others = max(
                    (
                        gained[each]
                        for each in samples
                        if each != name and samples[each].kind == sample.kind
                    ),
                    default=0,
                )
                if not is_late:
                    seen.silent_seconds += since
                    if others and sample.is_blocked():
                        seen.missed_turns += others
                if (finding := self._judge(name, sample, others, now)) is not None:
                    found.append(finding)
        return found

    def _take_turns(self, name: str, sample: Sample) -> int:
        """The number of turns since the last sample.

        Each turn restarts the measurement of the silence.
        """
        seen = self._seen[name]
        gained = (sample.turns or 0) - seen.turns
        if gained:
            self._seen[name] = _Seen(
                sample.pid,
                sample.processor_seconds,
                seen.turns + gained,
                stopped_samples=seen.stopped_samples,
            )
        return gained

    def _judge(self, name: str, sample: Sample, others: int, now: float) -> Finding | None:
        """Judges a program that made no turn.

        `others` is the number of turns that another program of its kind made since the last sample.
        """
        seen = self._seen[name]
        factor = 1 if seen.turns else _START_FACTOR
        processor_seconds = sample.processor_seconds - seen.processor_seconds
        is_silent = (
            processor_seconds >= factor * _SILENT_SECONDS
            or seen.missed_turns >= factor * _SILENT_TURNS
        )
        may_replace = self._replaced_at is None or now - self._replaced_at >= _REPLACEMENT_SECONDS
        is_replaced = is_silent and others > 0 and may_replace
        if is_replaced:
            self._replaced_at = now
        elif seen.is_reported or seen.silent_seconds < factor * _SILENT_SECONDS:
            return None
        seen.is_reported = True
        return Finding(name, Reason.SILENT, is_replaced, seen.silent_seconds, processor_seconds)
