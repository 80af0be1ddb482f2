"""The commands of README.md print what README.md shows."""

import json
import re
from pathlib import Path

from tests.support import documents
from tests.support.documents import is_object, steps
from tests.support.stack import ROOT, Stack

README = (ROOT / "README.md").read_text()
WALK = README.split("\n## Stop a task\n")[1].split("\n## ")[0]


def test_each_call_prints_the_output_in_the_readme(stack: Stack, tmp_path: Path) -> None:
    walked = list(documents.run(WALK, stack, tmp_path))
    assert len(walked) >= 5
    for step, printed in walked:
        assert documents.is_expected(step, printed), f"{step.block.text}{printed}"


def test_the_outputs_in_the_readme_are_consistent() -> None:
    answers = [json.loads(step.expected) for step in steps(WALK) if is_object(step.expected)]
    assert len({answer["task_id"] for answer in answers if "task_id" in answer}) == 1
    cancelled = [answer for answer in answers if "outcome" in answer]
    assert [(answer["outcome"], answer["task"]["status"]) for answer in cancelled] == [
        ("accepted", "running"),
        ("already_requested", "cancelled"),
    ]


def test_the_task_runs_longer_than_a_reader_needs() -> None:
    """Each command takes 300 s or more. The steps end the task with `force_after`."""
    (description,) = re.findall(r'-d \'{"description": "(.*)"}\'', WALK)
    assert all(int(step.removeprefix("sleep ")) >= 300 for step in description.split("\\n"))
    assert '"force_after"' in WALK
    assert '"forced": true' in WALK
