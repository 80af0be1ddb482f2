"""Runs the code blocks of the pages in docs/ on a real stack, and compares their output."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import documents
from tests.support.ports import free_ports
from tests.support.stack import ROOT, Stack

# Other tests run these pages, on stacks of their own.
ELSEWHERE = ("gallery.md", "quickstart.md")
# operating.md comes last, because it restarts the stack.
PAGES = sorted(
    (
        page
        for page in (ROOT / "docs").glob("*.md")
        if documents.steps(page.read_text()) and page.name not in ELSEWHERE
    ),
    key=lambda page: (page.name == "operating.md", page.name),
)


@pytest.fixture(scope="module")
def demo_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack whose demo workspace only these pages use. Each page ends its tasks."""
    folder = tmp_path_factory.mktemp("pages")
    with Stack(
        folder / "state", METRICS_ADDRESS=f"127.0.0.1:{free_ports(5, in_a_row=5)[0]}"
    ).started() as stack:
        yield stack


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_prints_what_it_shows(page: Path, demo_stack: Stack, tmp_path: Path) -> None:
    folder, home = tmp_path / "folder", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    environment = {"HOME": str(home), "METRICS_ADDRESS": f"127.0.0.1:{demo_stack.metrics_port}"}
    walked = documents.run(page.read_text(), demo_stack, folder, **environment)
    wrong = [
        f"{step.block.text}-- has printed:\n{printed}"
        for step, printed in walked
        if not documents.is_expected(step, printed)
    ]
    assert not wrong, "\n".join(wrong)
