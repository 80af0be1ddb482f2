"""Runs docs/gallery.md: each of its agents is stopped on a real stack."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import documents, sandbox
from tests.support.stack import ROOT, Stack

PAGE = (ROOT / "docs" / "gallery.md").read_text()
AGENT = "\n\n".join(each.text for each in documents.blocks(PAGE) if each.language == "python")


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    sandbox.skip_without_sandbox()
    # The pod's user must be able to read the file.
    folder = tmp_path / "agent"
    folder.mkdir()
    for each in (folder, *list(folder.parents)[:3]):
        each.chmod(0o755)
    (folder / "stop_me.py").write_text(AGENT)
    running = Stack(tmp_path / "state", POD_ISOLATION="sandbox")
    running.arguments = ("--agent", f"{folder}/stop_me.py:agent")
    with running.started():
        yield running


def test_each_agent_stops_as_the_page_says(stack: Stack, tmp_path: Path) -> None:
    walk = tmp_path / "walk"
    walk.mkdir()
    for step, printed in documents.run(PAGE, stack, walk):
        assert documents.is_expected(step, printed), f"{step.block.text}{printed}"
