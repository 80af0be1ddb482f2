"""`make docs` builds the site strictly, and the built pages load nothing from other hosts."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.alerts import ALERTS
from tests.support.stack import ROOT

BUILD_SECONDS = 120
# What a browser loads by itself. Links that a reader follows do not count.
LOADED = re.compile(
    r"<(?:script|img|iframe|source)[^>]*\ssrc=\"(?P<src>[^\"]+)\""
    r"|<link(?![^>]*rel=\"(?:canonical|edit)\")[^>]*\shref=\"(?P<href>[^\"]+)\"",
)
LOADED_BY_STYLES = re.compile(
    r"url\(\s*['\"]?((?:https?:)?//[^)'\"]+)|@import\s+['\"](http[^'\"]+)"
)


def build(site: Path, docs: Path = ROOT / "docs") -> "subprocess.CompletedProcess[str]":
    """Builds a site as `make docs` does, into another folder."""
    if find_spec("mkdocs") is None:
        pytest.skip("`make docs` installs the packages that build the documents")
    config = site.parent / "mkdocs.yml"
    text = (ROOT / "mkdocs.yml").read_text().replace("docs_dir: docs", f"docs_dir: {docs}")
    config.write_text(text.replace("- .make/", f"- {ROOT}/.make/"))
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d"]
    return subprocess.run(
        [*command, str(site)],
        check=False,
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "site"
    done = build(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_has_every_page(site: Path) -> None:
    pages = {path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")}
    built = {path.relative_to(site).with_suffix(".md") for path in site.rglob("*.html")}
    from_the_tree = {Path("deployment.md")}  # deploy/README.md
    assert pages | from_the_tree == built - {Path("404.md")}


def test_the_url_of_each_alert_leads_to_its_runbook(site: Path) -> None:
    for rule in ALERTS.values():
        page, _, anchor = rule["annotations"]["runbook_url"].rpartition("#")
        assert f'id="{anchor}"' in (site / page.rpartition("/")[2]).read_text()


def test_the_pages_load_nothing_from_other_hosts(site: Path) -> None:
    loaded = {
        target
        for path in site.rglob("*.html")
        for match in LOADED.finditer(path.read_text())
        for target in match.groups()
        if target
    }
    loaded |= {
        target
        for path in site.rglob("*.css")
        for match in LOADED_BY_STYLES.finditer(path.read_text())
        for target in match.groups()
        if target
    }
    assert loaded
    assert [target for target in loaded if "//" in target] == []
