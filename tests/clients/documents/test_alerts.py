"""The alerts and the dashboard use metrics that exist, and each alert has a runbook."""

import re
from collections.abc import Iterator

import pytest

from evershell.api.status import RULES
from evershell.app.settings import Settings
from evershell.core.bounds import CANCEL_MARGIN
from evershell.features.webhooks.metrics import DeliveryBacklog, DeliveryMetrics
from evershell.features.webhooks.rules import DeliveryCounts
from evershell.telemetry.metrics import SLO_FAILURES, Metrics
from tests.support.alerts import ALERTS, PANELS, RECORDED
from tests.support.stack import ROOT
from tests.support.world import NOW

RUNBOOKS = (ROOT / "docs" / "runbooks.md").read_text()
SECTIONS = dict(
    zip(*[iter(re.split(r"^## (.*)\n", RUNBOOKS, flags=re.MULTILINE)[1:])] * 2, strict=True)
)
# What expressions append to the name of a metric, by the type of the metric.
SUFFIXES = {
    "counter": ("_total",),
    "histogram": ("_bucket", "_count", "_sum"),
    "info": ("_info",),
    "gauge": ("",),
}
METRIC = re.compile(r"\b(?:evershell|process)_\w+")
SERIES = re.compile(r"\bevershell:\w+:\w+")
OUTCOMES = re.compile(r'outcome[=!]~"([^"]*)"')


@pytest.fixture(scope="module")
def exported() -> set[str]:
    """The names of the series of all programs, except Envoy."""
    metrics = Metrics()
    metrics.watch_pool(dict)
    metrics.watch_log(lambda: 0)
    metrics.watch_clock(lambda: 0.0, lambda: 0.0)
    backlog = metrics.backlog(lambda: NOW)
    backlog.set_open_cancellations(0, None)
    backlog.set_workspace_counts({})
    backlog.set_hold_count(0)
    DeliveryMetrics(metrics.registry)
    DeliveryBacklog(metrics.registry, lambda: NOW).counts = DeliveryCounts()
    backlog.set_oldest_end(NOW)
    return {
        family.name + suffix
        for family in metrics.registry.collect()
        for suffix in SUFFIXES[family.type]
    }


def expressions() -> Iterator[tuple[str, str]]:
    yield from RECORDED.items()
    for name, rule in ALERTS.items():
        yield name, rule["expr"]
    for panel in PANELS:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def test_alerts_and_panels_use_metrics_that_exist(exported: set[str]) -> None:
    for name, expression in expressions():
        used, recorded = set(METRIC.findall(expression)), set(SERIES.findall(expression))
        # tests/wire/edge/test_metrics.py checks Envoy's metrics.
        assert used or recorded or "envoy_" in expression, name
        assert used <= exported, name
        assert recorded <= RECORDED.keys(), name


def test_alerts_and_panels_name_outcomes_that_exist() -> None:
    known = {*RULES, "ok", "failed", "caller_gone"}
    for name, expression in expressions():
        for outcomes in OUTCOMES.findall(expression):
            assert set(outcomes.split("|")) <= known, name


def test_each_alert_has_a_runbook_and_each_runbook_an_alert() -> None:
    assert list(SECTIONS) == list(ALERTS)
    for name, rule in ALERTS.items():
        url = rule["annotations"]["runbook_url"]
        assert url == f"https://docs.evershell.ai/runbooks.html#{name.lower()}"
        assert "**Callers see**" in SECTIONS[name], name
        assert "**What to do**" in SECTIONS[name], name
        assert "**Drill**" in SECTIONS[name], name


def test_the_bound_of_a_cancellation_is_that_of_the_default_settings() -> None:
    default = {name: field.default for name, field in Settings.model_fields.items()}
    iteration = default["model_timeout_seconds"] + default["tool_timeout_seconds"]
    bound = iteration + CANCEL_MARGIN.total_seconds() + default["lease_seconds"]
    assert ALERTS["CancellationOverdue"]["expr"].endswith(f"> {bound:g}")
    assert f"{bound:g} s" in SECTIONS["CancellationOverdue"]
    assert f"{bound:g} s" in ALERTS["CancellationOverdue"]["annotations"]["description"]


def test_the_page_of_the_objectives_has_the_expressions_of_rules_and_dashboard() -> None:
    page = (ROOT / "docs" / "slo.md").read_text()
    queries = re.findall(r"```promql\n(.*?)```", page, flags=re.DOTALL)
    targets = [target["expr"] for panel in PANELS for target in panel["targets"]]
    for query, recorded in zip(queries, ("cancel_task_errors", "cancel_signals_late"), strict=True):
        share = " ".join(query.split())
        # Removes the lower bounds for rates, which only the rules for alerts have.
        rule = RECORDED[f"evershell:{recorded}:ratio_rate1h"]
        without_floor = re.sub(r"clamp_min\((.*?\)), 0\.0?1\)", r"\1", rule)
        assert share == without_floor.replace("[1h]", "[30d]")
        assert any(share in target for target in targets)
    assert "|".join(SLO_FAILURES) in queries[0]
