from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.stack import Stack


@pytest.fixture(scope="session")
def fragile_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One stack for all tests that kill its programs, with crash points; test_crash_points.py says
    what the long lease is for.
    """
    folder = tmp_path_factory.mktemp("fragile")
    points = folder / "points"
    points.mkdir()
    running = Stack(
        folder / "state", CRASH_POINTS_DIR=str(points), LEASE_SECONDS="600", WORKERS="3"
    )
    try:
        running.start()
        yield running
        assert running.stop() == 0
    finally:
        running.kill_if_running()


@pytest.fixture
def crash_points(fragile_stack: Stack) -> Iterator[Path]:
    """A file in this folder arms the crash point of its name."""
    folder = fragile_stack.state_dir.parent / "points"
    yield folder
    for point in folder.iterdir():
        point.unlink()
