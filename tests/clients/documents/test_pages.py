"""The blocks of code in docs/: each has a known language, and names only tests that exist."""

import re
from pathlib import Path

import pytest

from tests.support import documents
from tests.support.documents import OUTPUTS, RUNNABLE, blocks
from tests.support.stack import ROOT

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
# Languages of blocks that are not run with their page. Each block names the test that uses it.
OTHERS = ("go", "yaml", "promql")


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
