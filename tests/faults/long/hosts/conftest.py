"""One stack on many hosts, which the tests of this folder share."""

from collections.abc import Iterator

import pytest

from tests.faults import network
from tests.faults.long.hosts.many_hosts import HOSTS, ManyHosts


@pytest.fixture(scope="session")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManyHosts]:
    """A running stack on many hosts."""
    network.require()
    with network.network(HOSTS) as made:
        stack = ManyHosts(tmp_path_factory.mktemp("hosts") / "state", made)
        with stack.started():
            yield stack


@pytest.fixture(autouse=True)
def _connected(request: pytest.FixtureRequest) -> Iterator[None]:
    """Ends all cuts after a test, even if the test failed."""
    yield
    if "hosts" in request.fixturenames:
        request.getfixturevalue("hosts").network.heal()
