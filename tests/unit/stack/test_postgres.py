"""How the embedded PostgreSQL is initialised, started and stopped, and how leftovers are ended."""

import asyncio
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from evershell.core.errors import OperatorError
from evershell.stack import postgres
from evershell.stack.postgres import STOP_SIGNAL, Places
from evershell.stack.supervisor import Program, Supervisor
from tests.support.alive import is_alive
from tests.support.leftovers import SHARED_MEMORY, mapped
from tests.support.small_disk import fill, free, small_disk
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    """A cluster for the tests that do not need a new one."""
    made = postgres.places(tmp_path_factory.mktemp("cluster"))
    postgres.initialise(made.data_dir)
    return made


@pytest.fixture
def _no_shared_memory() -> Iterator[None]:
    """Removes the shared memory of a killed server, which otherwise stays until the next start."""
    before = set(SHARED_MEMORY.glob("PostgreSQL.*"))
    yield
    for segment in set(SHARED_MEMORY.glob("PostgreSQL.*")) - before - mapped():
        segment.unlink(missing_ok=True)


@contextmanager
def running(places: Places) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a server of this cluster. Yields once it accepts connections."""
    log = places.data_dir.with_name("log")
    with log.open("wb") as stderr:
        started = subprocess.Popen(
            postgres.command(places.data_dir, places.socket_dir), stderr=stderr
        )
    try:
        try:
            asyncio.run(postgres.wait_ready(postgres.database_url(places.socket_dir), 60))
        except TimeoutError:
            pytest.fail(f"the server, {started.poll()=}, says: {log.read_text()}")
        yield started
    finally:
        if started.poll() is None:
            started.send_signal(postgres.STOP_SIGNAL)
        started.wait(60)


@pytest.fixture
def process(places: Places, _no_shared_memory: None) -> Iterator[subprocess.Popen[bytes]]:
    with running(places) as started:
        yield started


@pytest.mark.parametrize("name", ["with space", "a,b", "50%20&x=#?", "é"])
def test_the_name_of_the_state_folder_may_have_special_characters(
    tmp_path: Path, name: str
) -> None:
    made = postgres.places(tmp_path / name)
    try:
        assert name not in str(made.socket_dir)
        url = postgres.database_url(made.socket_dir)
        assert conninfo_to_dict(url)["host"] == str(made.socket_dir)
    finally:
        made.socket_dir.rmdir()


def test_the_server_listens_only_on_a_socket_and_stops_cleanly(
    places: Places, process: subprocess.Popen[bytes]
) -> None:
    with psycopg.connect(postgres.database_url(places.socket_dir)) as connection:
        settings = [
            connection.execute(f"SHOW {name}").fetchone()
            for name in ("server_encoding", "listen_addresses", "fsync")
        ]
        assert settings == [("UTF8",), ("",), ("on",)]
    process.send_signal(postgres.STOP_SIGNAL)
    assert process.wait(20) == 0
    assert not (places.data_dir / "postmaster.pid").exists()


def test_a_leftover_server_is_stopped_and_its_data_is_kept(
    places: Places, process: subprocess.Popen[bytes]
) -> None:
    url = postgres.database_url(places.socket_dir)
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE kept ()")
    with psycopg.connect(url):
        postgres.clear_stale(places.data_dir)
    assert process.wait(20) == 0
    with running(places), psycopg.connect(url) as connection:
        connection.execute("SELECT FROM kept")


def test_the_processes_of_a_killed_server_end(
    places: Places, process: subprocess.Popen[bytes]
) -> None:
    family = psutil.Process(process.pid).children()
    process.kill()
    process.wait(20)
    postgres.clear_stale(places.data_dir)
    # clear_stale does not find a process that is exiting, because it has left its working
    # directory.
    eventually(lambda: not any(map(is_alive, family)))


@pytest.mark.parametrize("found", ["_postmaster", "_servers"])
def test_a_leftover_server_may_end_before_it_is_ended(
    places: Places, monkeypatch: pytest.MonkeyPatch, found: str
) -> None:
    child = subprocess.Popen(["/bin/true"])
    ended = psutil.Process(child.pid)
    child.wait(20)
    monkeypatch.setattr(postgres, found, lambda _: ended if found == "_postmaster" else [ended])
    monkeypatch.setattr(psutil, "wait_procs", lambda processes, timeout: ([], processes))
    postgres.clear_stale(places.data_dir)


def test_a_foreign_process_with_the_recorded_pid_is_left_alone(places: Places) -> None:
    other = subprocess.Popen(["/bin/sleep", "60"], cwd=places.data_dir)
    try:
        (places.data_dir / "postmaster.pid").write_text(f"{other.pid}\n{places.data_dir}\n")
        postgres.clear_stale(places.data_dir)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_initialise_is_idempotent_and_replaces_an_unfinished_cluster(tmp_path: Path) -> None:
    places = postgres.places(tmp_path)
    unfinished = places.data_dir.with_name("data.unfinished")
    unfinished.mkdir()
    (unfinished / "rest").touch()
    postgres.initialise(places.data_dir)
    assert not unfinished.exists()
    version = (places.data_dir / "PG_VERSION").stat()
    postgres.initialise(places.data_dir)
    assert (places.data_dir / "PG_VERSION").stat() == version
    assert not (places.data_dir / "rest").exists()


def test_a_long_path_has_a_short_private_socket(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    before = deep.stat().st_mode
    places = postgres.places(deep)
    try:
        assert places == postgres.places(deep)
        assert len(str(places.socket_dir)) < 60
        assert places.socket_dir.stat().st_mode & 0o777 == 0o700
        assert deep.stat().st_mode == before
        assert places.data_dir.is_relative_to(deep)
        places.socket_dir.chmod(0o755)
        with pytest.raises(OperatorError, match="open to others"):
            postgres.places(deep)
    finally:
        places.socket_dir.rmdir()


async def test_a_server_that_crashed_on_a_full_disk_recovers_once_there_is_space(
    tmp_path: Path, _no_shared_memory: None
) -> None:
    supervisor = Supervisor(tmp_path / "logs")
    disk = postgres.places(tmp_path).data_dir.parent
    with small_disk(disk, 100 << 20):
        made = postgres.places(tmp_path)
        postgres.initialise(made.data_dir)
        url = postgres.database_url(made.socket_dir)
        await supervisor.start(
            Program(
                "postgres",
                postgres.command(made.data_dir, made.socket_dir),
                stop_signal=STOP_SIGNAL,
            )
        )
        try:
            await postgres.wait_ready(url, 20)
            fill(disk)
            with (
                pytest.raises(psycopg.OperationalError),
                psycopg.connect(url, autocommit=True) as connection,
            ):
                # PostgreSQL cannot create the next file of its write-ahead log.
                for _ in range(3):
                    connection.execute("SELECT pg_switch_wal(), txid_current()")
            # The recovery has failed too, because the disk is full.
            log = tmp_path / "logs" / "postgres.log"
            await asyncio.to_thread(
                eventually, lambda: re.search("FATAL: .*No space left", log.read_text())
            )
            free(disk)
            await postgres.wait_ready(url, 60)
        finally:
            await supervisor.stop_all()
