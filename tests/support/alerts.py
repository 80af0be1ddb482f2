"""The alerts of deploy/monitoring, and promtool, which evaluates them."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.stack import ROOT

_FOLDER = ROOT / "deploy" / "monitoring"
# The recording rules and the alerts.
SPEC: dict[str, Any] = yaml.safe_load((_FOLDER / "alerts.yaml").read_text())["spec"]
_RULES: list[dict[str, Any]] = [rule for group in SPEC["groups"] for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in _RULES if "alert" in rule}
# The expressions of the recording rules, by the name of the recorded series.
RECORDED: dict[str, str] = {rule["record"]: rule["expr"] for rule in _RULES if "record" in rule}
DASHBOARD: dict[str, Any] = json.loads((_FOLDER / "dashboard.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
SCRAPE_INTERVAL = "15s"
_LIMIT_SECONDS = 60

# Maps each series to its samples, in promtool's notation.
Series = dict[str, str]


def promtool(*arguments: str) -> str:
    """Runs promtool and returns what it prints. Skips the test if promtool is not installed."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed (Debian: apt-get install promtool)")
    done = subprocess.run(
        [program, *arguments], capture_output=True, text=True, check=False, timeout=_LIMIT_SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rules_file(folder: Path, spec: dict[str, Any] = SPEC) -> Path:
    """Writes the rules to a file for Prometheus. Returns the path of the file."""
    path = folder / "rules.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


def assert_firing(
    folder: Path, series: Series, at: str, firing: set[str], interval: str = SCRAPE_INTERVAL
) -> None:
    """Checks that exactly these alerts fire at `at`.

    Each series has one sample per `interval`.
    """
    expression = 'group by (alertname) (ALERTS{alertstate="firing"})'
    expected = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(firing)]
    test = {
        "rule_files": [rules_file(folder).name],
        "evaluation_interval": interval,
        "tests": [
            {
                "interval": interval,
                "input_series": [{"series": s, "values": v} for s, v in series.items()],
                "promql_expr_test": [
                    {"expr": expression, "eval_time": at, "exp_samples": expected}
                ],
            }
        ],
    }
    path = folder / "test.yaml"
    path.write_text(yaml.safe_dump(test))
    promtool("test", "rules", str(path))
