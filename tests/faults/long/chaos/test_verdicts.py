"""The parts of chaos, tested alone: its verdicts on made-up failures, its hogs, and its plans."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.faults.long.chaos.hog import hog
from tests.faults.long.chaos.plan import Kind, draw
from tests.faults.long.chaos.unhurt import (
    Failure,
    Hurt,
    judge_programs,
    judge_workspaces,
)
from tests.faults.long.chaos.waits import Waits
from tests.support.stack import Stack
from tests.support.waiting import eventually

_LEASE = 30.0
_FORCED = "its agent did not interrupt the task in time"
_FAILURE = Failure("ws_1", at=1_000.0, reason=_FORCED, up_at=900.0)


@pytest.mark.parametrize(
    ("hurt", "is_reason"),
    [
        (Hurt("ws_1", 950.0, 950.0, is_fatal=True), True),
        # The fault killed an earlier agent.
        (Hurt("ws_1", 890.0, 890.0, is_fatal=True), False),
        (Hurt("ws_1", 1_002.0, 1_002.0, is_fatal=True), False),
        (Hurt("ws_2", 950.0, 950.0, is_fatal=True), False),
        (Hurt("ws_1", 970.0, 972.0), True),
        # After the freeze, the agent had a whole lease in which to continue.
        (Hurt("ws_1", 950.0, 952.0), False),
        (Hurt("ws_1", 999.0, 1_001.0, is_of_starts=True), False),
    ],
)
def test_a_failure_is_excused_by_what_hurt_its_own_agent(hurt: Hurt, is_reason: bool) -> None:
    assert _FAILURE.is_by(hurt, _LEASE) is is_reason


def test_a_full_disk_excuses_an_agent_that_could_not_be_started() -> None:
    failed = replace(_FAILURE, reason="its agent could not be started: No space left on device")
    assert failed.is_by(Hurt("ws_1", 999.0, 1_001.0, is_of_starts=True), _LEASE)


def test_an_agent_that_ran_out_of_time_is_a_violation_unless_it_had_too_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = Stack(tmp_path / "state", LEASE_SECONDS=str(_LEASE))
    stack.ready = {"server_addr": "127.0.0.1:1"}
    waits = Waits(stack, ["ws_1"])
    lease = replace(_FAILURE, reason="its agent did not renew its lease in time")
    ended = replace(_FAILURE, reason="its agent's process ended unexpectedly")
    hurts = [Hurt("worker-0", 950.0, 990.0)]

    def excused() -> list[bool]:
        found = list(judge_workspaces(stack, [lease, _FAILURE, ended], hurts, waits))
        assert "its lease of 30 s ran out" in found[0].text
        assert "the time to end a forced task of 2 s ran out" in found[1].text
        return [each.is_too_short for each in found]

    assert excused() == [False, False, False]
    hurts.append(Hurt("worker-1", 960.0, 980.0))
    hurts.append(Hurt("postgres", 979.0, 986.0))
    assert excused() == [True, False, False]
    hurts.append(Hurt("postgres", 999.0, 1_000.0))
    assert excused() == [True, True, False]
    del hurts[1:]
    assert excused() == [False, False, False]
    counter = tmp_path / "schedstat"
    monkeypatch.setattr(waits, "_counters", lambda: [("ws_1", counter)])
    for at, waited in ((970.0, 0.0), (985.0, 9.0), (999.0, 19.0)):
        counter.write_text(f"0 {waited * 1e9:.0f} 1\n")
        monkeypatch.setattr(time, "time", lambda at=at: at)
        waits._read()
    assert excused() == [True, True, False]


def test_a_program_that_was_replaced_is_a_violation_unless_it_was_hurt(tmp_path: Path) -> None:
    line = {"event": "program_frozen", "timestamp": "1970-01-01T00:16:40Z"}
    output = tmp_path / "output"
    output.write_text(
        "Starting …\n" + "\n".join(json.dumps({**line, "name": f"worker-{i}"}) for i in (0, 1))
    )
    (violation,) = judge_programs(output, [Hurt("worker-1", 982.0, 1_000.0)])
    assert "replaced worker-0," in violation


def test_a_hog_runs_and_ends_as_a_group() -> None:
    def of_group() -> list[str]:
        found = []
        for process in psutil.process_iter(["status"]):
            try:
                if os.getpgid(process.pid) == group:
                    found.append(str(process.info["status"]))
            except ProcessLookupError:
                continue
        return [status for status in found if status != psutil.STATUS_ZOMBIE]

    with hog(3, 60.0) as group:
        assert of_group() == [psutil.STATUS_RUNNING] * 3
    eventually(lambda: not of_group())
    with hog(3, 0.0) as group:
        eventually(lambda: not of_group())


def test_a_plan_with_a_load_throughout_has_no_other_load() -> None:
    assert Kind.LOAD in {fault.kind for fault in draw(1, 120, 4).faults}
    assert Kind.LOAD not in {fault.kind for fault in draw(1, 120, 4, load=40).faults}
