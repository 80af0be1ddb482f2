"""Every block of code in the pages of docs/, run on a stack as its reader has it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import documents
from tests.support.ports import free_ports
from tests.support.stack import ROOT, Stack

PAGES = [page for page in sorted((ROOT / "docs").glob("*.md")) if documents.steps(page.read_text())]


@pytest.fixture
def fresh_stack(tmp_path: Path) -> Iterator[Stack]:
    """A stack of its own for each page, so that the logs are as short as the page shows them."""
    stack = Stack(tmp_path / "state", METRICS_PORT=str(free_ports(3, in_a_row=3)[0]))
    try:
        stack.start()
        yield stack
        assert stack.stop() == 0
    finally:
        stack.kill_if_running()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_prints_what_it_shows(page: Path, fresh_stack: Stack, tmp_path: Path) -> None:
    folder, home = tmp_path / "folder", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    environment = {"HOME": str(home), "METRICS_PORT": str(fresh_stack.metrics_port)}
    walked = documents.run(page.read_text(), fresh_stack, folder, **environment)
    wrong = [
        f"{step.block.text}-- has printed:\n{printed}"
        for step, printed in walked
        if not documents.is_expected(step, printed)
    ]
    assert not wrong, "\n".join(wrong)
