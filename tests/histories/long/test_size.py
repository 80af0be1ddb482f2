"""The checker is fast enough to judge the history of a long run."""

import json
import random
import time
from pathlib import Path
from typing import Any

from evershell.histories.judge import judge
from evershell.histories.lines import read
from tests.histories.calls import task


def test_a_hundred_thousand_calls_are_judged_within_a_minute(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    _record(path, 100_000)
    began = time.process_time()
    assert judge(read([path])) == []
    assert time.process_time() - began < 60


def _record(path: Path, count: int) -> None:
    """Records ten calls for each of many tasks in 20 workspaces.

    For one task in 50, the answer to the first CancelTask is lost.
    """
    chance = random.Random(1)
    lines: list[tuple[float, dict[str, Any]]] = []
    for number in range(count // 10):
        name, place = f"t{number}", {"workspace_id": f"ws{number % 20}"}
        accepted = {"outcome": "accepted", "task_id": name}
        lost = chance.random() < 0.02
        calls: list[tuple[str, dict[str, Any]]] = [
            ("SubmitTask", {"answer": {"task_id": name}}),
            ("GetTask", {"answer": task(name, "running", **place)}),
            ("CancelTask", {"error": "unavailable"} if lost else {"answer": accepted}),
            ("CancelTask", {"answer": accepted | {"outcome": "already_requested"}}),
            *[("GetTask", {"answer": task(name, "asked", **place)})] * 2,
            *[("GetTask", {"answer": task(name, "cancelled", **place)})] * 4,
        ]
        for index, (call, end) in enumerate(calls):
            call_id, at = f"{number}.{index}", number // 20 + index / 10
            begun = {"id": call_id, "caller": "A", "org": "", "call": call, "arguments": place}
            lines += [(at, begun), (at + 0.09 + chance.random() / 100, {"id": call_id} | end)]
    lines.sort(key=lambda each: each[0])
    path.write_text("".join(json.dumps({"at": at} | line) + "\n" for at, line in lines))
