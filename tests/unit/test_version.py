"""The version of the distribution is the same everywhere."""

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from prometheus_client import generate_latest

from evershell.telemetry.metrics import Metrics
from evershell.version import VERSION
from tests.support.stack import ROOT


def test_the_programs_the_metrics_and_the_packages_have_it() -> None:
    script = str(Path(sys.executable).with_name("evershell"))
    for program in ((sys.executable, "-m", "evershell.commands"), (script,)):
        command = [*program, "--version"]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert printed == f"evershell, version {VERSION}\n"
    assert f'version="{VERSION}"' in generate_latest(Metrics().registry).decode()
    assert metadata.version("evershell") == VERSION
    description, lock = (_npm(name) for name in ("package.json", "package-lock.json"))
    assert {description["version"], lock["version"], lock["packages"][""]["version"]} == {VERSION}


def _npm(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((ROOT / "clients" / "typescript" / name).read_text())
    return content
