"""A Prometheus that scrapes the programs of a stack and evaluates the alerts of deploy/monitoring.

The times in the alerts are shortened: an alert that waits for 15 minutes fires after 3 s.
"""

import copy
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.alerts import SPEC, rules_file
from tests.support.ports import free_ports
from tests.support.waiting import eventually

_WAITS = {"1m": "200ms", "2m": "400ms", "5m": "1s", "15m": "3s"}
# Even on a busy machine, the shortest window contains a few calls and two scrapes.
_WINDOWS = {"5m": "6s", "15m": "8s", "30m": "10s", "1h": "12s", "6h": "14s"}
# How long a cancellation may take before the alert fires.
_BOUND_SECONDS = 3
_INTERVAL = "500ms"
# How old the last sample of a series may be for Prometheus to use it. The default is 5 minutes.
_LOOKBACK = "3s"
_LIMIT_SECONDS = 120.0


def _quick_rules() -> dict[str, Any]:
    """The rules for alerts, with shorter times."""
    spec = copy.deepcopy(SPEC)
    for rule in (rule for group in spec["groups"] for rule in group["rules"]):
        rule["expr"] = re.sub(r"(?<=\[)\w+(?=\])", lambda at: _WINDOWS[at[0]], rule["expr"])
        rule["expr"] = re.sub(r"(?<=> )780$", str(_BOUND_SECONDS), rule["expr"])
        if "for" in rule:
            rule["for"] = _WAITS[rule["for"]]
    return spec


class Prometheus:
    """A running Prometheus."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self._ended_at = 0.0

    def alerts(self, *states: str) -> set[str]:
        """The names of the alerts in the given states, which are `pending` and `firing`."""
        answer = self._client.get("/api/v1/alerts")
        return {
            each["labels"]["alertname"]
            for each in answer.json()["data"]["alerts"]
            if each["state"] in states
        }

    def await_firing(self, names: set[str]) -> None:
        """Waits until each of these alerts has fired since the last `await_end`."""
        try:
            eventually(lambda: names <= self._have_fired(), _LIMIT_SECONDS)
        except TimeoutError:
            raise AssertionError(f"not fired: {names - self._have_fired()}") from None

    def _have_fired(self) -> set[str]:
        seconds = max(1, int(time.monotonic() - self._ended_at))
        query = f'last_over_time(ALERTS{{alertstate="firing"}}[{seconds}s])'
        answer = self._client.get("/api/v1/query", params={"query": query})
        return {each["metric"]["alertname"] for each in answer.json()["data"]["result"]}

    def await_end(self, names: set[str]) -> None:
        """Waits until none of these alerts is firing or pending."""
        eventually(lambda: not names & self.alerts("pending", "firing"), _LIMIT_SECONDS)
        self._ended_at = time.monotonic()

    def is_ready(self) -> bool:
        with suppress(httpx.TransportError):
            return self._client.get("/-/ready").is_success
        return False


@contextmanager
def prometheus(folder: Path, targets: Mapping[str, int]) -> Iterator[Prometheus]:
    """Runs Prometheus inside the block. Skips the test if Prometheus is not installed.

    `targets` maps the name of each program to scrape to the program's port on loopback.
    """
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed (Debian: apt-get install prometheus)")
    scrapes = [
        {"job_name": name, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
        for name, port in targets.items()
    ]
    every = {"scrape_interval": _INTERVAL, "scrape_timeout": _INTERVAL}
    config = {
        "global": {**every, "evaluation_interval": _INTERVAL},
        "rule_files": [str(rules_file(folder, _quick_rules()))],
        "scrape_configs": scrapes,
    }
    path = folder / "prometheus.yaml"
    path.write_text(yaml.safe_dump(config))
    (port,) = free_ports(1)
    command = [
        program,
        f"--config.file={path}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        f"--query.lookback-delta={_LOOKBACK}",
        "--log.level=warn",
    ]
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=url, trust_env=False, timeout=20) as client:
            running = Prometheus(client)
            eventually(running.is_ready, _LIMIT_SECONDS)
            yield running
    finally:
        process.terminate()
        process.wait(_LIMIT_SECONDS)
