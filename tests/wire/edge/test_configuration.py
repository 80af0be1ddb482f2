"""Envoy finds workers by a name instead of addresses, and operators read what Envoy refuses."""

from pathlib import Path

import pytest

from evershell.core.errors import OperatorError
from evershell.stack.envoy.config import Edge, render, validate


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
