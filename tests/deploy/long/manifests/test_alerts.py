"""According to promtool, each alert fires when it must, and does not fire when all is well."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.alerts import ALERTS, PANELS, Series, assert_firing, promtool, rules_file

# The series of a healthy service, scraped for 30 minutes: a leading controller without open
# cancellations, an edge, and a worker that answers calls and the heartbeats of 10,000 agents.
CALLS = 'evershell_rpc_seconds_count{instance="a",rpc="SubmitTask",outcome="%s"}'
HEARTBEATS = 'evershell_rpc_seconds_count{instance="a",rpc="Heartbeat",outcome="ok"}'
STREAMS = 'evershell_rpc_seconds_count{instance="a",rpc="WatchEvents",outcome="unavailable"}'
EDGE_CALLS = (
    'envoy_cluster_upstream_rq_xx{instance="e",envoy_cluster_name="control_plane",'
    'envoy_response_code_class="%s"}'
)
HEALTHY = 'envoy_cluster_membership_healthy{instance="e",envoy_cluster_name="control_plane"}'
STARTS = 'evershell_agent_signal_seconds_count{instance="a",rpc="StartTask",result="%s"}'
CONNECTIONS = 'evershell_database_connections{instance="a",state="%s"}'
OPEN, OLDEST = "evershell_cancellations_open", "evershell_cancellations_oldest_seconds"
HOLDS, WAITING = "evershell_orgs_on_hold", 'evershell_database_waiting{instance="a"}'
AUDIT = 'evershell_audit_entries_lost_total{instance="a"}'
LOG = 'evershell_log_lines_lost_total{instance="a"}'
OFFSET = 'evershell_clock_offset_seconds{instance="a"}'
CORRECTION = 'evershell_clock_correction_seconds{instance="a"}'
WEBHOOKS = 'evershell_webhook_events_total{instance="a",result="%s"}'
WEBHOOK_OLDEST = "evershell_webhook_oldest_seconds"
LIMIT = 'evershell_task_limits_reached_total{instance="a",limit="%s"}'
WELL: Series = {
    OPEN: "0x120",
    OLDEST: "0x120",
    HOLDS: "0x120",
    CALLS % "ok": "0+1000x120",
    HEARTBEATS: "0+15000x120",
    EDGE_CALLS % "2": "0+1000x120",
    HEALTHY: "2x120",
    STARTS % "ok": "0+100x120",
    CONNECTIONS % "used": "1x120",
    CONNECTIONS % "idle": "3x120",
    WAITING: "0x120",
    AUDIT: "0x120",
    LOG: "0x120",
    OFFSET: "0.2x120",
    CORRECTION: "0x120",
    WEBHOOKS % "delivered": "0+100x120",
    WEBHOOKS % "failed": "0+10x120",
    WEBHOOK_OLDEST: "0x120",
    LIMIT % "max_duration": "0x120",
    LIMIT % "max_total_tokens": "0x120",
}


@dataclass(frozen=True)
class Case:
    """Two sets of series that replace series of WELL.

    With `fires`, the alert fires at the time `at`. With `quiet`, it almost fires, but
    does not.
    """

    fires: Series
    at: str
    quiet: Series
    # A time at which the cause already exists, but the alert does not fire yet.
    not_yet: str = ""


# Each series has one sample every 15 s; `_` stands for a missing sample.
CASES = {
    "CancellationOverdue": Case(
        fires={OPEN: "1x120", OLDEST: "0+15x120"},
        at="14m15s",
        not_yet="13m45s",
        # The oldest cancellation ends just before the bound, and a new one then becomes the oldest.
        quiet={OPEN: "1x120", OLDEST: "0+15x52 0+15x52"},
    ),
    "NoLeadingController": Case(
        fires={OPEN: "0x20 _x100", OLDEST: "0x20 _x100"},
        # Prometheus uses the last sample of a series for 5 minutes, unless the series is stale.
        at="12m",
        not_yet="5m",
        quiet={OPEN: "0x20 _x2 0x100", OLDEST: "0x20 _x2 0x100"},
    ),
    "NoWorkers": Case(
        fires={CALLS % "ok": "0+1000x20 _x100", HEARTBEATS: "0+15000x20 _x100"},
        at="12m",
        not_yet="5m",
        quiet={
            CALLS % "ok": "0+1000x20 _x2 22000+1000x97",
            HEARTBEATS: "0+15000x20 _x2 330000+15000x97",
        },
    ),
    "NoEdges": Case(
        fires={HEALTHY: "2x20 _x100", EDGE_CALLS % "2": "0+1000x20 _x100"},
        at="12m",
        not_yet="5m",
        quiet={HEALTHY: "2x20 _x2 2x97"},
    ),
    "NoHealthyWorkers": Case(
        fires={HEALTHY: "2x20 0x100"},
        at="6m30s",
        not_yet="5m45s",
        quiet={HEALTHY: "2x20 0x2 2x97"},
    ),
    "CallsFail": Case(
        # There are four calls a minute, and all of them fail.
        fires={CALLS % "ok": "0+1x20 20x100", CALLS % "unavailable": "0x20 0+1x100"},
        at="15m",
        not_yet="7m",
        quiet={
            CALLS % "unavailable": "0+5x120",
            # Streams that end because workers are replaced do not count as failed calls.
            STREAMS: "0+100x120",
            CALLS % "permission_denied": "0+900x120",
            CALLS % "agent_unreachable": "0+900x120",
        },
    ),
    "AgentsUnreachable": Case(
        fires={STARTS % "unreachable": "0x20 0+20x100"},
        at="15m",
        not_yet="7m",
        quiet={STARTS % "unreachable": "0+5x120"},
    ),
    "DatabaseConnectionsExhausted": Case(
        fires={
            WAITING: "0x20 7x100",
            CONNECTIONS % "idle": "3x20 0x100",
            CONNECTIONS % "used": "1x20 10x100",
        },
        at="8m",
        not_yet="6m",
        # All connections are in use the whole time, but calls wait for one only during one scrape.
        quiet={CONNECTIONS % "idle": "0x120", WAITING: "0x20 7 0x100"},
    ),
    "AuditEntriesLost": Case(
        fires={AUDIT: "0x20 3x100"},
        at="8m",
        quiet={AUDIT: "3x120"},
    ),
    "LogLinesLost": Case(
        fires={LOG: "0x20 40x100"},
        at="8m",
        quiet={LOG: "40x120"},
    ),
    "WebhooksFail": Case(
        # After 5 minutes, no request can leave the service any more, so all requests fail.
        fires={
            WEBHOOKS % "delivered": "0+100x20 2000x100",
            WEBHOOKS % "failed": "0+10x20 210+20x100",
        },
        at="28m",
        not_yet="15m",
        # A few receivers fail for a long time.
        quiet={WEBHOOKS % "failed": "0+90x120"},
    ),
    "WebhookDeliveryOld": Case(
        fires={WEBHOOK_OLDEST: "0x20 43300+15x100"},
        at="12m",
        not_yet="9m",
        # A receiver was down for almost 12 hours, and works again.
        quiet={WEBHOOK_OLDEST: "42000+15x40 0x80"},
    ),
    "ClockOff": Case(
        fires={OFFSET: "0x20 -3600x100"},
        at="8m",
        not_yet="6m",
        quiet={OFFSET: "0.9x60 -0.9x60"},
    ),
    "DatabaseClockStepped": Case(
        fires={CORRECTION: "0x20 -3600x100"},
        at="6m",
        quiet={CORRECTION: "0.9x60 -0.9x60"},
    ),
    "HoldInForce": Case(
        fires={HOLDS: "0x20 1x100"},
        at="6m",
        quiet={HOLDS: "1x20 0x100"},
    ),
    "LimitsReached": Case(
        fires={LIMIT % "max_total_tokens": "0x20 1x100"},
        at="8m",
        quiet={LIMIT % "max_total_tokens": "9x120"},
    ),
}


def test_promtool_accepts_the_expressions_of_the_dashboard(tmp_path: Path) -> None:
    expressions = [target["expr"] for panel in PANELS for target in panel["targets"]]
    rules = [
        {"record": f"panel:{number}", "expr": each.replace("$__rate_interval", "1m")}
        for number, each in enumerate(expressions)
    ]
    spec = {"groups": [{"name": "dashboard", "rules": rules}]}
    said = promtool("check", "rules", str(rules_file(tmp_path, spec)))
    assert f"{len(expressions)} rules found" in said


def test_nothing_fires_if_all_is_well(tmp_path: Path) -> None:
    for at in ("1m", "5m", "28m"):
        assert_firing(tmp_path, WELL, at, set())


def test_each_alert_has_a_case() -> None:
    # test_slo.py tests the other two alerts.
    assert set(CASES) == set(ALERTS) - {"CancelTaskFails", "CancelSignalsLate"}


@pytest.mark.parametrize("name", CASES)
def test_an_alert_fires_alone(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    if case.not_yet:
        assert_firing(tmp_path, WELL | case.fires, case.not_yet, set())
    assert_firing(tmp_path, WELL | case.fires, case.at, {name})


@pytest.mark.parametrize("name", CASES)
def test_an_alert_does_not_fire(name: str, tmp_path: Path) -> None:
    for at in ("6m", "15m", "28m"):
        assert_firing(tmp_path, WELL | CASES[name].quiet, at, set())
