"""The commands in README.md print what README.md shows."""

from pathlib import Path

from tests.support import documents
from tests.support.stack import ROOT, Stack

README = (ROOT / "README.md").read_text()
WALK = README.split("\n## Stop a task\n")[1].split("\n## ")[0]


def test_each_call_prints_the_output_in_the_readme(stack: Stack, tmp_path: Path) -> None:
    walked = list(documents.run(WALK, stack, tmp_path))
    assert len(walked) >= 4
    for step, printed in walked:
        assert documents.is_expected(step, printed), f"{step.block.text}{printed}"
