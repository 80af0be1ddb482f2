"""Envoy accepts the rendered configuration, and has a reply for each of its own errors."""

import json
from pathlib import Path

import pytest
from evershell.workspace.v1 import error_pb2

from evershell.core.errors import OperatorError
from evershell.stack.envoy.config import Edge, render, validate
from evershell.stack.envoy.documents import edge_file
from tests.support.edge.answers import rule


def test_envoy_accepts_the_configuration(tmp_path: Path) -> None:
    workers = ["127.0.0.1:50051", "[::1]:50052", f"unix:{tmp_path}/worker.sock"]
    render(Edge(8080, 8081, workers, tmp_path / "admin.sock"), tmp_path / "envoy.yaml")
    validate(tmp_path / "envoy.yaml")


def test_workers_can_be_found_by_a_name(tmp_path: Path) -> None:
    render(Edge(8080, 8081, ["workers:50051"], tmp_path / "admin.sock"), tmp_path / "envoy.yaml")
    validate(tmp_path / "envoy.yaml")


def test_an_invalid_configuration_is_reported(tmp_path: Path) -> None:
    config = tmp_path / "envoy.yaml"
    with pytest.raises(OperatorError, match="too long"):
        render(Edge(8080, 8081, [], tmp_path / ("x" * 120)), config)
    with pytest.raises(OperatorError, match="host:port"):
        render(Edge(8080, 8081, ["localhost"], tmp_path / "admin.sock"), config)
    config.write_text("static_resources: {nonsense: 1}")
    with pytest.raises(OperatorError, match="nonsense"):
        validate(config)


def test_every_code_that_only_the_edge_sends_has_a_local_reply() -> None:
    replies = {}
    for mapper in json.loads(edge_file("routes.json").read_text())["local_replies"]:
        if "status_code_filter" not in mapper["filter"]:
            # A compound filter refines the reply to one status. The plain filter is checked below.
            continue
        comparison = mapper["filter"]["status_code_filter"]["comparison"]
        error = mapper["body_format_override"]["json_format"]["error"]
        assert len(error["message"]) > 10
        if (
            comparison["op"] == "EQ"
            and comparison["value"]["default_value"] == rule(error["code"]).http
        ):
            replies[error["code"]] = comparison["value"]["default_value"]
    for value in error_pb2.Error.ErrorCode.DESCRIPTOR.values[1:]:
        if rule(value.name).edge_only or value.name in replies:
            assert replies[value.name] == rule(value.name).http
    assert {"validation_error", "unavailable", "deadline_exceeded", "internal"} < replies.keys()
