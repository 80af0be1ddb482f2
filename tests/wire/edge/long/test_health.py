"""Calls fail or succeed as soon as Envoy has noticed a change of a worker's health."""

import httpx
import pytest
from grpc_health.v1 import health_pb2

from tests.support.edge.fixtures import short_directory
from tests.support.edge.running_edge import running_edge
from tests.support.edge.stub import Stub, serving
from tests.support.waiting import eventually

Health = health_pb2.HealthCheckResponse


def test_calls_follow_the_last_health_check(tmp_path_factory: pytest.TempPathFactory) -> None:
    stub = Stub()
    with serving(stub) as address, running_edge(short_directory(tmp_path_factory), address) as edge:

        def has_flags(flags: str) -> bool:
            return f"control_plane::{address}::health_flags::{flags}" in edge.admin("/clusters")

        def status() -> int:
            return httpx.get(f"{edge.rest_url}/v1/workspaces/ws_1", trust_env=False).status_code

        # Each change follows the previous one within a second.
        for _ in range(3):
            assert status() == 200
            stub.set_serving(Health.NOT_SERVING)
            eventually(lambda: has_flags("/failed_active_hc"))
            assert status() == 503
            stub.set_serving(Health.SERVING)
            eventually(lambda: has_flags("healthy"))
