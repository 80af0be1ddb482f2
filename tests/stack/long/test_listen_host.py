"""LISTEN_HOST: what other machines reach is the edge, and nothing else."""

from pathlib import Path

import psutil

from tests.support.faults import assert_a_task_is_cancelled
from tests.support.stack import Stack, Workspace


def test_with_all_addresses_only_the_edge_listens_on_them(tmp_path: Path) -> None:
    stack = Stack(tmp_path / "state", LISTEN_HOST="0.0.0.0", AGENT_TLS="on")  # noqa: S104
    with stack.started():
        # A listener of gRPC takes IPv4 through a socket of IPv6.
        found = {
            (process.name() == "envoy", connection.laddr.ip.removeprefix("::ffff:"))
            for process in stack.processes()
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
        assert found == {(True, "0.0.0.0"), (False, "127.0.0.1")}  # noqa: S104
        assert stack.ready["rest_url"].startswith("http://127.0.0.1:")
        assert_a_task_is_cancelled(Workspace(stack))
