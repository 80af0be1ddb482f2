"""One stack on many hosts for the tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.faults import network
from tests.faults.long.hosts.many_hosts import HOSTS, ManyHosts

# An agent ends 9.6 s after its last renewal. The calls that a cut makes slow are over before.
LEASE_SECONDS = 12.0


@pytest.fixture(scope="session")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManyHosts]:
    """A running stack on many hosts."""
    network.require()
    with network.network(HOSTS) as made:
        stack = ManyHosts(
            tmp_path_factory.mktemp("hosts") / "state", made, LEASE_SECONDS=str(LEASE_SECONDS)
        )
        with stack.started():
            yield stack


@pytest.fixture(autouse=True)
def _connected(request: pytest.FixtureRequest) -> Iterator[None]:
    """A failed test leaves no host cut off."""
    yield
    if "hosts" in request.fixturenames:
        request.getfixturevalue("hosts").network.heal()
