"""What the tests of the manifests share."""

from typing import Any

import pytest

from tests.deploy.long.manifests import tools


@pytest.fixture(scope="module")
def kubernetes_tools() -> None:
    """Skips the test if the tools are not installed and cannot be downloaded."""
    tools.require()


@pytest.fixture(scope="module", params=tools.OVERLAYS)
def overlay(kubernetes_tools: None, request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """The objects of each overlay."""
    return tools.render(request.param)
