"""The linters of other projects find nothing in the OpenAPI document."""

from pathlib import Path

import pytest

from tests.support.npm import node, node_modules, npm_tool
from tests.support.openapi import PATH

RULES = Path(__file__).with_name("spectral.yaml")
REDOCLY = "@redocly/cli/bin/cli.js"
SPECTRAL = "@stoplight/spectral-cli/dist/index.js"


def test_redocly_finds_nothing(tmp_path: Path) -> None:
    output = npm_tool(REDOCLY, "lint", "--extends", "recommended-strict", PATH, folder=tmp_path)
    assert "warning" not in output


def test_spectral_finds_nothing(tmp_path: Path) -> None:
    options = ["--fail-severity", "hint", "--ruleset", str(RULES)]
    assert "No results" in npm_tool(SPECTRAL, "lint", *options, PATH, folder=tmp_path)


@pytest.mark.parametrize(
    ("tool", "options", "rule"),
    [
        (REDOCLY, ["lint", "--extends", "recommended-strict"], "info-license"),
        (SPECTRAL, ["lint", "--fail-severity", "hint", "--ruleset", str(RULES)], "license-url"),
    ],
)
def test_the_linters_find_a_missing_license(
    tmp_path: Path, tool: str, options: list[str], rule: str
) -> None:
    lines = PATH.read_text().splitlines(keepends=True)
    document = tmp_path / "openapi.yaml"
    document.write_text("".join(line for line in lines if "www.apache.org" not in line))
    done = node(node_modules() / tool, *options, document, folder=tmp_path)
    assert done.returncode != 0
    assert rule in done.stdout + done.stderr
