"""The checker does not refuse right histories, even if answers are missing."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from evershell.histories.judge import judge
from evershell.histories.lines import Call, read
from evershell.histories.recorder import Recorder
from tests.histories.calls import called, cancel, event, get, history, on, submit, task, watched
from tests.support.waiting import eventually

LOST: dict[str, Any] = {"error": "(no answer)"}
BULK = {"workspace_id": "ws", "task_id": "t1", "outcome": "already_requested"}
RECORDED = {"task_id": "t1", "intent_recorded": "true"}
# The begin and the end of calls that run at the same time. They end after all other calls.
LONG = (0.5, 99.0)

RIGHT: dict[str, Sequence[Call]] = {
    "a task is cancelled": [
        submit("t1"),
        cancel("accepted", "t1"),
        cancel("already_requested", "t1", task_id="t1"),
        get("t1", "cancelled"),
        cancel("already_finished", "t1", task_id="t1"),
        cancel("no_active_task"),
        submit("t2"),
        get("t2", "completed"),
        on("ListTasks", {"tasks": [task("t2", "completed"), task("t1", "cancelled")]}),
    ],
    "a lost cancellation had its effect": [
        submit("t1"),
        on("CancelTask", **LOST),
        cancel("already_requested", "t1"),
    ],
    "a lost cancellation had no effect": [
        submit("t1"),
        on("CancelTask", error="unavailable"),
        cancel("accepted", "t1"),
    ],
    "a lost cancellation comes late, and hits the next task": [
        submit("t1"),
        on("CancelTask", **LOST),
        get("t1", "completed"),
        submit("t2"),
        get("t2", "cancelled"),
    ],
    "many lost calls, and two tasks that only other answers name": [
        *(on("SubmitTask", **LOST) for _ in range(16)),
        *(on("CancelTask", **LOST) for _ in range(8)),
        *(on("StopWorkspace", **LOST) for _ in range(2)),
        get("t1", "cancelled"),
        get("t2", "completed"),
        *(
            call
            for number in range(3, 12)
            for call in (submit(f"t{number}"), cancel("accepted", f"t{number}"))
        ),
        get("t11", "cancelled"),
    ],
    "many lost submissions, whose tasks are in a stream": [
        submit("t0"),
        *(on("SubmitTask", during=(1.1, 2.0), **LOST) for _ in range(20)),
        watched(
            0,
            *(
                event(kind, task_id=f"t{number}")
                for number in range(21)
                for kind in ("task_submitted", "task_completed")
            ),
        ),
    ],
    "a task from before the history is in a stream, after a lost submission": [
        submit("t2"),
        get("t2", "completed"),
        on("SubmitTask", **LOST),
        watched(
            0,
            *(
                event(kind, task_id=task_id)
                for task_id in ("t1", "t2")
                for kind in ("task_submitted", "task_completed")
            ),
        ),
    ],
    "many lost cancellations": [
        submit("t1"),
        *(on("CancelTask", **LOST) for _ in range(40)),
        get("t1", "cancelled"),
    ],
    "a call without an end": [
        submit("t1"),
        on("CancelTask", during=(1.5, math.inf)),
        get("t1", "cancelled"),
    ],
    "a lost submission had its effect": [
        on("SubmitTask", **LOST),
        on("SubmitTask", error="workspace_busy", details={"task_id": "t1"}),
        get("t1", "completed"),
        submit("t2"),
    ],
    "two lost submissions, of which one had its effect": [
        on("SubmitTask", **LOST),
        on("SubmitTask", error="deadline_exceeded"),
        submit("t2"),
        get("t2", "running"),
        cancel("already_finished", "t1", task_id="t1"),
    ],
    "a submission that never arrived": [on("SubmitTask", **LOST), cancel("no_active_task")],
    "unreachable, but recorded": [
        submit("t1"),
        on("CancelTask", error="agent_unreachable", details=RECORDED),
        cancel("already_requested", "t1"),
    ],
    "unreachable, and recorded before": [
        submit("t1"),
        cancel("accepted", "t1"),
        on("CancelTask", error="agent_unreachable", details=RECORDED),
    ],
    "calls at the same time, in another order than they began": [
        submit("t1", during=LONG),
        cancel("already_requested", "t1", during=LONG),
        cancel("accepted", "t1", during=LONG),
        get("t1", "running", during=LONG),
        get("t1", "cancelled", during=LONG),
        get("t2", "running", during=LONG),
        submit("t2", during=LONG),
    ],
    "a refusal changes nothing": [
        submit("t1"),
        cancel("accepted", "t1"),
        on("CancelTask", error="rate_limited"),
        on("SubmitTask", error="workspace_stopped"),
        on("CancelTask", error="workspace_not_found", org="other"),
    ],
    "a limit": [submit("t1", limits={"max_duration": "1s"}), get("t1", "cancelled")],
    "a stop": [submit("t1"), on("StopWorkspace", {}), get("t1", "cancelled")],
    "a lost stop": [submit("t1"), on("StopWorkspace", **LOST), get("t1", "cancelled")],
    "a deletion": [
        submit("t1"),
        on("DeleteWorkspace", {}),
        on("SubmitTask", error="workspace_deleting"),
        cancel("already_requested", "t1"),
        on("GetTask", error="workspace_not_found", task_id="t1"),
    ],
    "a lost deletion": [
        submit("t1"),
        on("DeleteWorkspace", **LOST),
        on("GetWorkspace", {"id": "ws", "status": "deleting", "current_task_id": "t1"}),
        on("GetTask", error="task_not_found", task_id="t1"),
    ],
    "a hold": [
        submit("t1"),
        called("HoldOrg", {"remaining": 0}, cancel_running=True),
        on("SubmitTask", error="org_on_hold"),
        called("GetHold", {"on_hold": True}),
        cancel("already_requested", "t1"),
        called("ReleaseOrg", {}),
        submit("t2"),
    ],
    "a lost hold, and a lost release": [
        submit("t1"),
        called("HoldOrg", cancel_running=True, **LOST),
        on("SubmitTask", error="org_on_hold"),
        called("ReleaseOrg", **LOST),
        submit("t2"),
        get("t1", "cancelled"),
    ],
    "a submission during the call of a hold": [
        submit("t1", during=(2.0, 3.0)),
        called("HoldOrg", {}, during=LONG),
    ],
    "a hold cancels a task that was submitted during its call": [
        submit("t1", during=(1.0, 4.0)),
        called("HoldOrg", {"remaining": 0}, cancel_running=True, during=(1.5, 3.0)),
        get("t1", "running", during=(2.0, 2.1)),
        get("t1", "asked", during=(3.2, 3.3)),
    ],
    "a second hold, during which the first hold is released": [
        called("HoldOrg", {}, during=(1.0, 2.0)),
        called("HoldOrg", {}, during=(2.5, 5.0)),
        called("ReleaseOrg", {}, during=(2.6, 3.0)),
        called("GetHold", {"on_hold": True}, during=(3.5, 4.0)),
        submit("t1", during=(0.1, 0.5)),
    ],
    "a workspace is created a minute after a hold": [
        submit("t1", "old"),
        called("HoldOrg", {}, during=(2.0, 3.0)),
        called("GetHold", {"on_hold": True}, during=(3.0, 4.0)),
        called("ReleaseOrg", {}, during=(5.0, 6.0)),
        called("CreateWorkspace", {"id": "new"}, during=(63.5, 65.0)),
    ],
    "a hold of another organization": [called("HoldOrg", {}, org="other"), submit("t1")],
    "CancelTasks": [
        submit("t1"),
        called("CancelTasks", all=True, **LOST),
        called("CancelTasks", {"results": [BULK]}, all=True),
    ],
    "CancelTasks that is not done": [
        submit("t1"),
        called("CancelTasks", {"results": [], "remaining": 1}, all=True),
        get("t1", "running"),
    ],
    "a tree": [
        submit("p"),
        submit("c", "ws2", parent_task_id="p"),
        submit("g", "ws3", parent_task_id="c"),
        cancel("accepted", "p", task_id="p", include_descendants=True),
        get("g", "cancelled", "ws3"),
        get("c", "asked", "ws2"),
    ],
    "a lost cancellation of a tree": [
        submit("p"),
        submit("c", "ws2", parent_task_id="p"),
        on("CancelTask", task_id="p", include_descendants=True, **LOST),
        get("p", "running"),
        get("c", "cancelled", "ws2"),
    ],
    "a watcher that reconnects": [
        submit("t1"),
        watched(0, event("task_submitted"), event("task_started")),
        watched(1, event("task_started"), event("task_completed")),
        get("t1", "completed"),
    ],
    "a watcher sees a cancellation": [
        submit("t1"),
        cancel("accepted", "t1"),
        watched(0, event("task_submitted"), event("task_cancel_requested")),
        get("t1", "asked"),
        watched(2, event("task_completed", "cancelled")),
    ],
    "a watcher of a log whose beginning was removed": [
        submit("t1"),
        watched(0, event("task_submitted", seq=7)),
    ],
    "a task that never was": [
        on("CancelTask", error="task_not_found", task_id="t0"),
        submit("t1"),
        on("GetTask", error="task_not_found", task_id="t0"),
    ],
    "tasks that are older than the history": [
        submit("t1"),
        on("ListTasks", {"tasks": [task("t1", "running"), task("t0", "failed")]}),
    ],
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_history_is_not_refused(name: str) -> None:
    assert judge(history(RIGHT[name])) == []


def test_a_lost_call_has_no_effect_after_a_minute() -> None:
    calls = [submit("t1"), on("CancelTask", during=(2.0, 3.0), **LOST)]
    assert judge(history([*calls, get("t1", "running", during=(70.0, 71.0))])) == []
    calls += [
        get("t1", "running", during=(70.0, 71.0)),
        get("t1", "cancelled", during=(72.0, 73.0)),
    ]
    assert judge(history(calls))


def test_the_checker_judges_files_and_needs_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"

    def verdict() -> tuple[int, str]:
        # No service is running: the checker reads only the file.
        command = [sys.executable, "-m", "evershell.histories", str(path)]
        done = subprocess.run(command, text=True, capture_output=True, check=False)
        return done.returncode, done.stdout

    recorder = Recorder(path)
    for name, answer in (
        ("SubmitTask", {"task_id": "t1", "status": "submitted"}),
        ("CancelTask", {"outcome": "accepted", "task_id": "t1"}),
    ):
        recorder.answer(recorder.begin("A", name, {"workspace_id": "ws"}), answer)
    stream = recorder.begin("A", "WatchEvents", {"workspace_id": "ws"})
    recorder.message(stream, {"event": {"seq": "1"} | event("task_submitted")})
    recorder.fail(stream, "unavailable", {})
    recorder.begin("A", "CancelTask", {"workspace_id": "ws"})
    code, text = verdict()
    assert (code, text.splitlines()[-1]) == (
        0,
        "4 calls, 1 cancellations accepted, 1 calls without an answer, 1 messages of streams, "
        "0 deliveries: right",
    )
    read_it = recorder.begin("A", "GetTask", {"workspace_id": "ws", "task_id": "t1"})
    recorder.answer(read_it, task("t1", "completed"), "r9")
    recorder.close()
    code, text = verdict()
    assert code == 1 and "1 CONTRADICTIONS" in text
    assert "CancelTask(ws) → accepted, t1\n" in text and "→ t1, completed (request r9)\n" in text


def test_what_a_killed_process_has_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    program = (
        "import pathlib, sys; from evershell.histories.recorder import Recorder\n"
        "Recorder(pathlib.Path(sys.argv[1])).begin('A', 'CancelTask', {}); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE)
    eventually(lambda: path.exists() and path.stat().st_size > 0)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    with path.open("a") as file:
        file.write('{"id": "half of a li')
    (call,) = read([path]).calls
    assert (call.name, call.ended, json.dumps(call.answer)) == ("CancelTask", math.inf, "null")
