"""What the tests of the manifests share."""

from typing import Any

import pytest

from tests.deploy.long.manifests import tools


@pytest.fixture(scope="module")
def kubernetes_tools() -> None:
    """Skips the test if the tools are not installed and cannot be downloaded."""
    tools.require()


@pytest.fixture(scope="module", params=tools.SETS)
def values(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The values of the chart. The test runs once for each set of values."""
    return tools.SETS[request.param]


@pytest.fixture(scope="module")
def rendered(kubernetes_tools: None, values: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects of the chart with these values."""
    return tools.render(values)
