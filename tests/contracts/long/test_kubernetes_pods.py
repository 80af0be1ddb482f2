"""The contract of Pods on Kubernetes: a real API server, and the test acts as the node."""

from collections.abc import AsyncIterator

import pytest

from tests.contracts.kubernetes_case import KubernetesCase
from tests.contracts.pods_suite import *  # noqa: F403 - its tests run here


@pytest.fixture
async def case() -> AsyncIterator[KubernetesCase]:
    async with KubernetesCase.open() as case:
        yield case
