"""What the tests of the manifests share."""

from typing import Any

import pytest
import yaml

from tests.deploy.long.manifests import tools

# What neither the trial nor the values of deploy/README.md turn on.
OTHERS: dict[str, Any] = {
    "image": {"digest": "sha256:" + "0" * 64},
    "agentImage": "registry.example/agent:1",
    "settings": {"OTEL_SERVICE_NAME": "evershell"},
    "externalSecrets": {
        "store": {"kind": "ClusterSecretStore", "name": "vault"},
        "paths": {"database": "evershell/database"},
    },
    "edge": {"service": {"type": "LoadBalancer", "annotations": {"example.com/pool": "a"}}},
    "httpRoute": {"parentRefs": [{"name": "gateway"}], "hostnames": ["*.evershell.example"]},
    "migrate": {"hook": False},
    "podSpec": {"nodeSelector": {"pool": "control"}},
    "networkPolicies": {"agents": [{"ports": [{"protocol": "TCP", "port": 443}]}]},
}


@pytest.fixture(scope="module")
def kubernetes_tools() -> None:
    """Skips the test if the tools are not installed and cannot be downloaded."""
    tools.require()


@pytest.fixture(scope="module", params=["trial", "production", "others"])
def values(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Each set of values."""
    sets: dict[str, dict[str, Any]] = {
        "trial": tools.trial(),
        "production": yaml.safe_load(tools.shown()[0]),
        "others": OTHERS,
    }
    return sets[request.param]


@pytest.fixture(scope="module")
def rendered(kubernetes_tools: None, values: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects of the chart with each set of values."""
    return tools.render(values)
