"""The linters of other projects find no problems in the OpenAPI document."""

from pathlib import Path

import pytest

from tests.support.npm import npm_tool
from tests.support.openapi import PATH

RULES = Path(__file__).with_name("spectral.yaml")
REDOCLY = "@redocly/cli/bin/cli.js"
SPECTRAL = "@stoplight/spectral-cli/dist/index.js"


def test_redocly_finds_nothing(tmp_path: Path) -> None:
    output = npm_tool(REDOCLY, "lint", "--extends", "recommended-strict", PATH, folder=tmp_path)
    assert "warning" not in output


@pytest.mark.soak
def test_spectral_finds_nothing(tmp_path: Path) -> None:
    options = ["--fail-severity", "hint", "--ruleset", str(RULES)]
    assert "No results" in npm_tool(SPECTRAL, "lint", *options, PATH, folder=tmp_path)
