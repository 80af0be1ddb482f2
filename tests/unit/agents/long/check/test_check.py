"""`evershell agent check`: good agents pass, and each broken one fails the case that it breaks."""

import re
import sys
from pathlib import Path

import pytest

from evershell.app.settings import Settings
from evershell.conformance.moments import Moment
from evershell.conformance.suite import Options
from tests.support.lengths import smoke
from tests.support.npm import NODE, program_folder
from tests.support.stack import ROOT
from tests.unit.agents.long.check.running import HOW, PATIENT, TASKS, cases, check

AGENTS = Path(__file__).with_name("checked_agents.py")
SAMPLE = ROOT / "docs" / "agents" / "agent.mjs"
DESCRIPTORS = ROOT / "gen" / "evershell" / "edge" / "workspace.binpb"
COMMANDS = "sleep 0.6\nsleep 0.6"
DURING = {Moment.MODEL_CALL, Moment.TOOL_CALL, Moment.TWO_TOOLS}


def test_an_agent_that_comes_to_every_moment_passes_every_case() -> None:
    code, rows = check(*TASKS, *PATIENT, f"{AGENTS}:good")
    assert (code, cases(rows, "passed")) == (0, set(rows)), rows
    assert {f"{how} {moment}" for how in HOW for moment in Moment} < set(rows)


@pytest.mark.soak
def test_the_scripted_agent_passes() -> None:
    """The scripted agent calls no model and runs one tool at a time. Its tools never raise."""
    failing = "--model-error", "fail: it is broken"
    agent = "--", sys.executable, "-P", "-m", "evershell.agents"
    code, rows = check("--task", COMMANDS, *failing, *PATIENT, *agent)
    assert code == 0, list(rows.items())
    assert cases(rows, "not reached") == {
        *(f"{how} {m}" for how in HOW for m in DURING - {Moment.TOOL_CALL}),
        "an exception in the tool",
        "an exception in the loop",
        "usage and partial output",
    }


def test_the_agent_in_javascript_passes(tmp_path: Path) -> None:
    folder = program_folder(tmp_path, SAMPLE, DESCRIPTORS)
    agent = NODE, folder / SAMPLE.name, folder / DESCRIPTORS.name
    code, rows = check("--task", COMMANDS, *PATIENT, "--", *agent)
    assert code == 0, list(rows.items())
    assert cases(rows, "passed") >= {"forced during a tool call", "an expired lease"}


BROKEN = {
    "swallows": ("forced during a tool call", "has ended its pod, and the task cancelled"),
    "leaves_a_process": ("forced during a model call", "still runs .*: `/bin/sleep 600`"),
    "ignores": ("cancelled during a tool call", "2 iterations were recorded after"),
    "loses_usage": ("usage and partial output", "the tokens of iteration 1 in: cancelled"),
    "ends_twice": ("exactly one end", "committed after the end in: "),
}


@pytest.mark.parametrize("name", smoke(BROKEN, ["ends_twice"]))
def test_a_broken_agent_fails_the_case_that_it_breaks(name: str) -> None:
    code, rows = check(f"{AGENTS}:{name}")
    case, detail = BROKEN[name]
    assert code == 1
    assert re.search(detail, rows[case][1]), rows
    others = {each for each in cases(rows, "failed") if not each.startswith(("cancel", "forced"))}
    assert others <= {case}, rows


def test_a_task_that_never_ends_is_not_reached_and_can_be_cancelled() -> None:
    code, rows = check("--task-seconds", "5", "--force-seconds", "60", f"{AGENTS}:endless")
    assert (code, cases(rows, "failed")) == (0, set()), rows
    assert "use another --task, or --task-seconds" in rows["a task that is not cancelled"][1]
    assert "cancelled during a tool call" in cases(rows, "passed")


@pytest.mark.soak
def test_a_task_that_goes_on_after_its_cancellation_fails() -> None:
    code, rows = check("--task-seconds", "5", f"{AGENTS}:goes_on")
    assert (code, rows["cancelled between iterations"][0]) == (1, "failed"), rows


def test_an_agent_that_does_not_start_ends_the_check(tmp_path: Path) -> None:
    (tmp_path / "my_agent.py").write_text("import absent")
    code, rows = check(f"{tmp_path}/my_agent.py:agent")
    ((verdict, detail),) = rows.values()
    assert (code, verdict) == (1, "failed")
    assert "ModuleNotFoundError: No module named 'absent'" in detail


def test_an_agent_has_the_time_of_pod_start_seconds_to_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Options(description="").start_seconds == Settings().pod_start_seconds
    slow = tmp_path / "slow.py"
    slow.write_text("import time; time.sleep(600)")
    monkeypatch.setenv("POD_START_SECONDS", "1")
    code, rows = check(f"{slow}:agent")
    assert code == 1
    assert rows == {
        "a task that is not cancelled": ("failed", "the agent has not registered: no log")
    }
