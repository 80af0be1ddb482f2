"""Fixtures: the programs in a real cluster, and a stack outside it whose pods run on its nodes.

All tests need KUBECONFIG, and the image evershell:1 on the nodes. deploy/README.md describes the
other variables.
"""

from collections.abc import Iterator

import pytest

from tests.deploy.long.node import node
from tests.deploy.long.node.deployment import Deployment
from tests.deploy.long.node.stacks import running_stack
from tests.support.stack import Stack


@pytest.fixture(scope="session")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The trial of `deploy/`, installed in the cluster."""
    node.require()
    with Deployment.installed(tmp_path_factory.mktemp("deployment")) as running:
        yield running


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack whose time limits for pods and agents suit a slow node."""
    with running_stack(
        tmp_path_factory.mktemp("node"),
        LEASE_SECONDS="60",
    ) as running:
        yield running
