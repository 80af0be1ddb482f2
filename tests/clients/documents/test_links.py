"""Every relative link in the Markdown of the repository leads to a file, and to a place in it."""

import re
import subprocess
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.support.stack import ROOT

# GitHub's rule for anchors: letters, digits, hyphens and underscores remain.
_NOT_IN_ANCHOR = re.compile(r"[^\w\- ]")
# Finds the names to which a link into a file of code can lead, by the file's extension.
_NAME = {
    ".py": re.compile(r"^ *(?:async )?(?:def|class) (\w+)", re.MULTILINE),
    ".sql": re.compile(r"\b(?:FUNCTION|INDEX|CONSTRAINT) (\w+)"),
}
# The name of a rule in tests/faults/mutations, or of a history in tests/histories/test_wrong.py.
_RULE = re.compile(r'\brule\(\s*"([^"]+)"|^    "([^"]+)": \($', re.MULTILINE)
_ID = re.compile(r'<a id="([^"]+)"></a>')


def documents() -> list[Path]:
    """The Markdown files under version control, and new Markdown files."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    found = (ROOT / name for name in listed.stdout.split())
    return sorted(path for path in found if path.exists())


@cache
def tokens(path: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(path.read_text())


def links(path: Path) -> set[str]:
    """The targets of the links and pictures of a document."""
    inline = [child for token in tokens(path) for child in token.children or []]
    targets = {child.attrGet("href") or child.attrGet("src") for child in inline}
    return {str(target) for target in targets if target}


def anchor(text: str) -> str:
    return _NOT_IN_ANCHOR.sub("", text.lower()).replace(" ", "-")


@cache
def anchors(path: Path) -> set[str]:
    """The anchors of a document, or the names and rules in a file of code."""
    text = path.read_text()
    if path.suffix in _NAME:
        rules = (anchor(rule or history) for rule, history in _RULE.findall(text))
        return {*_NAME[path.suffix].findall(text), *rules}
    found = set(_ID.findall(text))
    for heading, inline in zip(tokens(path), tokens(path)[1:], strict=False):
        if heading.type == "heading_open":
            base = anchor("".join(child.content for child in inline.children or []))
            number = sum(each == base or each.startswith(f"{base}_") for each in found)
            found.add(f"{base}_{number}" if number else base)
    return found


def problem(path: Path, link: str) -> str:
    """The problem of a link; empty if there is none."""
    parts = urlsplit(link)
    if parts.scheme:
        return "" if parts.scheme in ("https", "http", "mailto") else "an unknown scheme"
    if link.startswith("/"):
        return "not relative"
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if not target.exists():
        return "no such file"
    if parts.fragment and parts.fragment not in anchors(target):
        return "no such heading or name"
    return ""


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path: Path) -> None:
    problems = {link: problem(path, link) for link in links(path)}
    assert {link: each for link, each in problems.items() if each} == {}


def test_each_attack_of_the_threat_model_names_its_tests() -> None:
    text = (ROOT / "docs" / "threat-model.md").read_text()
    tables = re.findall(r"^\| attack \|.*\| tests \|\n\|[-|]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    rows = [row for table in tables for row in table.splitlines()]
    cells = {row.split(" | ")[0]: row.split(" | ")[-1] for row in rows}
    assert len(cells) > 30
    assert [attack for attack, cell in cells.items() if ".py#test_" not in cell] == []


def test_each_promise_says_what_is_not_promised_and_what_shows_it() -> None:
    text = (ROOT / "docs" / "guarantees.md").read_text()
    promises = text.partition("\n## Promises\n")[2].partition("\n## ")[0].split("\n### ")[1:]
    rows = {each.partition("\n")[0]: each.splitlines()[-1].split(" | ") for each in promises}
    assert len(rows) > 8
    assert [each for each in promises if "\nNot promised:\n\n- that " not in each] == []
    kinds = ("../server/", "model", "../tests/faults/mutations/", "histories", ".py#test_")
    for promise, cells in rows.items():
        for cell, kind in zip(cells, kinds, strict=True):
            assert kind in cell, promise
