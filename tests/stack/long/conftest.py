from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.constants import crash_points_in
from tests.support.stack import Stack


@pytest.fixture(scope="session")
def fragile_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack with crash points, which the tests that kill its programs share.

    The lease is so long that no heartbeat delivers an intent during a test. Tasks are removed a day
    after their end.
    """
    folder = tmp_path_factory.mktemp("fragile")
    points = folder / "points"
    points.mkdir()
    # If root runs the stack, its agents run as other users, which must be able to disarm points.
    points.chmod(0o777)
    with Stack(
        folder / "state",
        **crash_points_in(points),
        LEASE_SECONDS="600",
        WORKERS="3",
        TASK_RETENTION_DAYS="1",
    ).started() as running:
        yield running


@pytest.fixture
def crash_points(fragile_stack: Stack) -> Iterator[Path]:
    """Yields a folder. A file in it arms the crash point with the same name.

    Afterwards, disarms all crash points.
    """
    folder = fragile_stack.state_dir.parent / "points"
    yield folder
    for point in folder.iterdir():
        point.unlink()
