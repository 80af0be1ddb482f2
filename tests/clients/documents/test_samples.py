"""The samples in Python pass a strict type check, as in a project of a caller."""

import subprocess
import sys
from pathlib import Path

from tests.support import documents
from tests.support.stack import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_samples_pass_mypy_strict(tmp_path: Path) -> None:
    for page in PAGES:
        for number, block in enumerate(documents.blocks(page.read_text())):
            # A block that gives a reason for not being run is only a part of a program.
            if block.language == "python" and not block.reason:
                (tmp_path / f"{page.stem.replace('-', '_')}_{number}.py").write_text(block.text)
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", ".", "."],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert len(list(tmp_path.glob("*.py"))) > 5
