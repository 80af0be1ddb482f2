"""The figures of a round, from the log of Envoy and the moments of a roll-out."""

import pytest

from tests.bench.discovery.load import Calls
from tests.bench.discovery.roll_out import Times, calls_by_worker, figures

LOG = """\
100.500 127.0.0.2:50051
103.250 127.0.0.3:50051
101.750 127.0.0.2:50051
102.000 -
104.0"""


def test_the_log_says_when_each_worker_was_called() -> None:
    assert calls_by_worker(LOG) == {"127.0.0.2": [100.5, 101.75], "127.0.0.3": [103.25]}


def test_the_figures_are_times_since_the_announcement_and_since_sigterm() -> None:
    times = Times(
        began=99.0, announced={"127.0.0.3": 103.0}, terminated={"127.0.0.2": 102.0}, ended=105.0
    )
    calls = {
        "REST": Calls(3, 0.5, [(104.0, "503"), (102.0, "503")]),
        "gRPC": Calls(2, 0.75, [(105.0, "UNAVAILABLE")]),
    }
    assert figures(times, calls_by_worker(LOG), calls) == {
        "first call after the announcement (each worker)": [0.25],
        "last call after SIGTERM (each worker)": [-0.25],
        "calls": [5],
        "calls lost over REST": [2],
        "calls lost over gRPC": [1],
        "time from the first lost call to the last": [pytest.approx(3.0)],
        "slowest call": [0.75],
        "roll-out": [6.0],
        "roll-out after the last worker was ready": [2.0],
    }


def test_nothing_is_lost() -> None:
    times = Times(announced={"127.0.0.3": 103.0}, terminated={}, ended=105.0)
    made = figures(times, calls_by_worker(LOG), {"REST": Calls(1, 0.5)})
    assert made["time from the first lost call to the last"] == [0.0]
