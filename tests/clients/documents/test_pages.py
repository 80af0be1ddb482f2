"""The pages of docs/: generated ones are up to date, and their blocks of code can be run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import documents
from tests.support.documents import OUTPUTS, RUNNABLE, blocks
from tests.support.stack import ROOT

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
# Languages of blocks that are neither run nor an output: parts of a program in another language.
OTHERS = ("go", "yaml")
# Prints the page of the errors, from the committed descriptor set.
ERROR_PAGE = """
from generate import DESCRIPTOR_SET, GEN
from error_page import error_page
from source import Protos
print(error_page(Protos((GEN / DESCRIPTOR_SET).read_bytes())), end="")
"""


def test_the_generated_pages_are_up_to_date() -> None:
    command = [sys.executable, ".make/pages.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_page_of_the_errors_is_up_to_date() -> None:
    command = [sys.executable, "-c", ERROR_PAGE]
    done = subprocess.run(command, cwd=ROOT / "protos", check=True, capture_output=True, text=True)
    assert done.stdout == (DOCS / "errors.md").read_text(), "run `make gen`"


def test_every_setting_is_on_its_page_unless_it_is_internal() -> None:
    from evershell.app.settings import Settings

    page = (DOCS / "configuration.md").read_text()
    listed = re.findall(r"^\| `([A-Z_]+)` \|", page, re.MULTILINE)
    internal = {"RUN_ID", "CRASH_POINTS_DIR"}
    assert set(listed) == {name.upper() for name in Settings.model_fields} - internal
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_block_that_is_not_run_says_why(page: Path) -> None:
    text = page.read_text()
    found = blocks(text)
    assert text.count("\n```") == 2 * len(found), "a block has no language, or a line before it"
    for block in found:
        assert block.language in (*RUNNABLE, *OUTPUTS, *OTHERS), block
        for test in re.findall(r"tests/[\w/]+(?:\.py)?", block.reason):
            assert (ROOT / test).exists(), block
        if block.language in OTHERS:
            assert "tests/" in block.reason, f"says which test runs it: {block}"
        if block.title:
            assert any(block.title in step.block.text for step in documents.steps(text)), block


@pytest.mark.parametrize(
    ("expected", "printed", "is_expected"),
    [
        ("accepted", "accepted\n", True),
        ("accepted", "already_requested\n", False),
        ("", "", True),
        ("", "a warning\n", False),
        ("1 task_01M87BM3XVW5RDTYHKM5QHVYGE …", "23 task_01M87BM3XVW5RDTYHKM5QHVYGZ a b\n", True),
        ("1 task_01M87BM3XVW5RDTYHKM5QHVYGE …", "23 ws_01M87BM3XVW5RDTYHKM5QHVYGZ\n", False),
        ("at 2026-01-01T00:00:00Z", "at 2027-02-03T04:05:06Z\n", True),
        ('{"a":"b","c":[1]}', '{"a": "x", "c": [2]}\n', True),
        ('{"a":"b","c":[1]}', '{"a": "x"}\n', False),
        ('{"a":"b"}', "accepted\n", False),
    ],
)
def test_an_output_is_compared_without_what_varies(
    expected: str, printed: str, is_expected: bool
) -> None:
    step = documents.Step(documents.Block("sh", "", "", ""), expected)
    assert documents.is_expected(step, printed) is is_expected
