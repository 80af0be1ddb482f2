"""The alerts of the objectives in docs/slo.md, evaluated by promtool over 8 hours."""

from pathlib import Path

import pytest
from evershell.agent.v1 import runtime_service_pb2
from evershell.workspace.v1 import workspace_service_pb2

from evershell.telemetry.metrics import SLO_FAILURES
from tests.support.alerts import RECORDED, Series, assert_firing

CALLS = 'evershell_rpc_seconds_count{instance="w",rpc="%s",outcome="%s"}'
SIGNALS = 'evershell_agent_signal_seconds_count{instance="%s",rpc="CancelTask",result="%s"}'
IN_TIME = (
    'evershell_agent_signal_seconds_bucket{instance="w",rpc="CancelTask",result="ok",le="0.25"}'
)
EDGE = (
    'envoy_cluster_upstream_rq_xx{instance="e",envoy_cluster_name="control_plane",'
    'envoy_response_code_class="%s"}'
)
OVERLOAD = (
    'envoy_http_downstream_rq_overload_close{instance="e",envoy_http_conn_manager_prefix="grpc"}'
)
HEALTHY = 'envoy_cluster_membership_healthy{instance="e",envoy_cluster_name="control_plane"}'
FAILS, LATE = {"CancelTaskFails"}, {"CancelSignalsLate"}
OTHER_METHODS = [
    method.name
    for file in (workspace_service_pb2, runtime_service_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
    if method.name != "CancelTask"
]

# One sample per minute. Workers answer 1,000 calls of each method per minute, and the edge counts
# 1,000 successful requests per minute.
WELL: Series = {
    "evershell_cancellations_open": "0x480",
    "evershell_cancellations_oldest_seconds": "0x480",
    'evershell_rpc_in_flight{instance="w",rpc="CancelTask"}': "1x480",
    HEALTHY: "1x480",
    CALLS % ("CancelTask", "ok"): "0+1000x480",
    **{CALLS % (method, "ok"): "0+1000x480" for method in OTHER_METHODS},
    EDGE % "2": "0+1000x480",
    EDGE % "5": "0x480",
    OVERLOAD: "0x480",
    SIGNALS % ("w", "ok"): "0+1000x480",
    SIGNALS % ("w", "unreachable"): "0x480",
    IN_TIME: "0+1000x480",
}


def cancel_task_fails(values: str, outcome: str = "internal") -> Series:
    return {CALLS % ("CancelTask", outcome): values}


def fires(folder: Path, series: Series, at: str, names: set[str]) -> None:
    assert_firing(folder, WELL | series, at, names, interval="1m")


def test_the_windows_of_an_objective_have_the_same_expression() -> None:
    for objective in ("cancel_task_errors", "cancel_signals_late"):
        expressions = {
            RECORDED[f"evershell:{objective}:ratio_rate{window}"].replace(f"[{window}]", "[]")
            for window in ("5m", "30m", "1h", "6h")
        }
        assert len(expressions) == 1
    assert len(RECORDED) == 8


@pytest.mark.parametrize("at", ["10m", "7h"])
def test_nothing_fires_if_all_is_well(tmp_path: Path, at: str) -> None:
    fires(tmp_path, {}, at, set())


def test_an_outage_fires_within_two_minutes_and_stops_soon_after_it(tmp_path: Path) -> None:
    # After 6 h, half of the calls fail for 2 minutes.
    outage = cancel_task_fails("0x360 1000 2000x118")
    fires(tmp_path, outage, "6h", set())
    fires(tmp_path, outage, "6h2m", FAILS)
    # The one-hour window is still above its threshold, but the 5-minute window is not.
    fires(tmp_path, outage, "6h9m", set())


def test_a_slow_burn_fires_by_the_long_windows(tmp_path: Path) -> None:
    # From 1 h on, 0.9 % of the calls fail: a burn rate of 9. The alert over 6 h and 30 min needs a
    # burn rate above 6; the alert over 1 h and 5 min needs a burn rate above 14.4.
    burn = cancel_task_fails("0x60 0+9x420")
    fires(tmp_path, burn, "2h", set())
    fires(tmp_path, burn, "7h30m", FAILS)


def test_failures_within_six_times_the_budget_do_not_fire(tmp_path: Path) -> None:
    fires(tmp_path, cancel_task_fails("0+5x480"), "7h30m", set())


def test_failures_of_other_methods_fire_other_alerts(tmp_path: Path) -> None:
    failing = {
        CALLS % (method, outcome): "0+1000x480"
        for method in OTHER_METHODS
        for outcome in SLO_FAILURES
    }
    fires(tmp_path, failing, "7h30m", {"CallsFail"})


def test_errors_of_callers_and_of_agents_are_no_failures(tmp_path: Path) -> None:
    outcomes = ("unauthenticated", "rate_limited", "workspace_not_found", "caller_gone")
    refused = {CALLS % ("CancelTask", each): "0+9000x480" for each in outcomes}
    unreachable = cancel_task_fails("0+1000x480", "agent_unreachable")
    fires(tmp_path, refused | unreachable, "7h30m", set())
    # Refused calls do not hide failures.
    fires(tmp_path, refused | cancel_task_fails("0+20x480"), "7h30m", FAILS)


def test_one_failed_call_pages_nobody(tmp_path: Path) -> None:
    # Ten calls an hour.
    rare = {CALLS % ("CancelTask", "ok"): " ".join(f"{n}x5" for n in range(80))}
    fires(tmp_path, rare | cancel_task_fails("0x420 1x60"), "7h2m", set())
    fires(tmp_path, rare | cancel_task_fails("0x420 0+2x60"), "7h5m", FAILS)


@pytest.mark.parametrize("failing", [EDGE % "5", OVERLOAD])
def test_failures_at_the_edge_count(tmp_path: Path, failing: str) -> None:
    fires(tmp_path, {failing: "0x360 0+50x120"}, "6h2m", set())
    fires(tmp_path, {failing: "0x360 0+50x120"}, "6h30m", FAILS)


def test_an_edge_that_answers_no_call_fires(tmp_path: Path) -> None:
    # No CancelTask call reaches a worker.
    without_calls = {name: "0x480" for name in WELL if "CancelTask" in name or name == EDGE % "2"}
    fires(tmp_path, without_calls | {OVERLOAD: "0x360 0+20x120"}, "6h10m", FAILS)


@pytest.mark.parametrize(
    "late",
    [
        # 20 % of the signals take longer than 0.25 s.
        {IN_TIME: "0+1000x360 360000+800x120"},
        {SIGNALS % ("w", "unreachable"): "0x360 0+250x120"},
    ],
    ids=["slow", "unreachable"],
)
def test_late_signals_fire(tmp_path: Path, late: Series) -> None:
    fires(tmp_path, late, "6h10m", set())
    fires(tmp_path, late, "7h", LATE)


def test_signals_that_the_fleet_controller_repeats_do_not_count(tmp_path: Path) -> None:
    fires(tmp_path, {SIGNALS % ("controller", "unreachable"): "0+1000x480"}, "7h", set())
