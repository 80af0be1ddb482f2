"""Log rotation while programs append, on a full disk too."""

import asyncio
import os
import subprocess
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from evershell.server.config import Settings
from evershell.server.stack import log_files
from evershell.server.stack.log_files import LogFile, open_log, rotate
from evershell.server.stack.supervisor import Program, Supervisor, exit_code
from tests.support.small_disk import fill, small_disk
from tests.support.waiting import eventually, eventually_async

_SIZE = 1_000


@pytest.fixture(autouse=True)
def _no_disk_counts_as_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_files, "_MIN_FREE_BYTES", 0)


def log_file(path: Path, max_bytes: int, files: int) -> LogFile:
    """A log like that of an agent, whose folder must not be a link."""
    return LogFile(path.parent.parent, (path.parent.name, path.name), max_bytes, files)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != ".ballast"
    }


def test_a_file_is_rotated_by_size_and_count(tmp_path: Path) -> None:
    path = tmp_path / "fleet.log"
    with open_log(path.parent, path.name) as output:
        for letter in b"abcd":
            output.write(bytes([letter]) * (_SIZE - 1))
            output.flush()
            rotate([log_file(path, _SIZE, 3)])
            assert path.stat().st_size == _SIZE - 1
            output.write(b"\n")
            output.flush()
            rotate([log_file(path, _SIZE, 3)])
            # The program continues at the start of the same file.
            assert path.stat().st_size == 0
    whole = {letter: letter.encode() * (_SIZE - 1) + b"\n" for letter in "abcd"}
    assert contents(tmp_path) == {
        "fleet.log": b"",
        "fleet.log.1": whole["d"],
        "fleet.log.2": whole["c"],
    }
    # A smaller number of files applies at the next rotation.
    path.write_bytes(b"e" * _SIZE)
    rotate([log_file(path, _SIZE, 1)])
    assert contents(tmp_path) == {"fleet.log": b""}


def test_the_copy_of_a_file_far_above_its_limit_has_the_end(tmp_path: Path) -> None:
    path = tmp_path / "fleet.log"
    path.write_bytes(b"old" * _SIZE + b"n" * _SIZE)
    rotate([log_file(path, _SIZE, 2)])
    assert contents(tmp_path) == {"fleet.log": b"", "fleet.log.1": b"n" * _SIZE}


def test_any_program_continues_after_a_rotation(tmp_path: Path) -> None:
    path = tmp_path / "cat.log"
    with open_log(path.parent, path.name) as output:
        program = subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, stdout=output)
    assert program.stdin is not None
    for number in range(10):
        program.stdin.write(f"{number}".encode() * _SIZE)
        program.stdin.flush()
        eventually(lambda: path.stat().st_size == _SIZE)
        rotate([log_file(path, _SIZE, 100)])
        # The program does not continue at its old offset, so there is no hole.
        assert path.stat().st_size == 0
    program.communicate()
    copies = contents(tmp_path)
    assert [copies[f"cat.log.{10 - number}"] for number in range(10)] == [
        f"{number}".encode() * _SIZE for number in range(10)
    ]


def test_rotation_follows_no_link_and_blocks_on_no_pipe(tmp_path: Path) -> None:
    pod, victims = tmp_path / "pod", [tmp_path / "victim", tmp_path / "other victim"]
    for victim in victims:
        victim.write_bytes(b"v" * _SIZE)
    pod.mkdir()
    (pod / "link").symlink_to(victims[0])
    (pod / "hard").hardlink_to(victims[1])
    os.mkfifo(pod / "pipe")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "log").write_bytes(b"v" * _SIZE)
    (tmp_path / "linked").symlink_to(tmp_path / "elsewhere")
    paths = [pod / "link", pod / "hard", pod / "pipe", pod / "absent", tmp_path / "linked" / "log"]
    rotate([log_file(path, 1, 2) for path in paths])
    assert all(
        victim.read_bytes() == b"v" * _SIZE for victim in [*victims, tmp_path / "elsewhere" / "log"]
    )
    assert {path.name for path in pod.iterdir()} == {"link", "hard", "pipe"}
    for name in ("link", "hard", "pipe"):
        with open_log(pod, name) as output:
            output.write(b"said")
        assert (pod / name).read_bytes() == b"said"
    assert all(victim.read_bytes() == b"v" * _SIZE for victim in victims)


def test_a_file_whose_copy_is_obstructed_is_truncated(
    tmp_path: Path,
) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * _SIZE)
    (tmp_path / "log.1" / "full").mkdir(parents=True)
    rotate([log_file(path, _SIZE, 2)])
    assert path.read_bytes() == b""


async def test_the_logs_of_a_stack_and_of_its_agents_are_rotated(tmp_path: Path) -> None:
    disk = tmp_path / "another disk"
    disk.mkdir()
    settings = Settings(state_dir=tmp_path / "state", log_max_bytes=1 << 16, log_files=4)
    agents = settings.state_dir / "fleet" / "ws_1"
    agents.mkdir(parents=True)
    # An operator may keep the logs on another disk.
    settings.logs_dir.symlink_to(disk)
    for name in ("postgres.log", "worker-0.log"):
        (settings.logs_dir / name).write_bytes(b"x" * (1 << 16))
    (agents / "log").write_bytes(b"x" * (1 << 20))
    rotating = asyncio.create_task(log_files.keep_rotating(settings))
    names = {"postgres.log.1", "worker-0.log.1", "log.1"}
    await eventually_async(
        lambda: (
            names <= {path.name for path in [*disk.iterdir(), *agents.iterdir()]}
            and not (agents / "log").stat().st_size
        )
    )
    rotating.cancel()


def test_rotation_on_a_full_disk_removes_the_oldest_copy(tmp_path: Path) -> None:
    block = os.sysconf("SC_PAGE_SIZE")
    size = 4 * block
    disk = tmp_path / "disk"
    with small_disk(disk, 16 * block):
        path = disk / "envoy.log"
        for number in (1, 2):
            path.with_name(f"envoy.log.{number}").write_bytes(str(number).encode() * size)
        path.write_bytes(b"c" * size)
        fill(disk)
        rotate([log_file(path, size, 4)])
        # The oldest copy was removed to make room for the new one.
        assert contents(disk) == {
            "envoy.log": b"",
            "envoy.log.1": b"c" * size,
            "envoy.log.2": b"1" * size,
        }
        path.write_bytes(b"d" * size)
        path.with_name("envoy.log.1").unlink()
        path.with_name("envoy.log.2").unlink()
        fill(disk)
        rotate([log_file(path, size, 4)])
        # There is no room for a copy, but the file is truncated.
        assert contents(disk) == {"envoy.log": b""}


def test_copies_are_removed_while_a_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, 1 << 20):
        monkeypatch.setattr(log_files, "_MIN_FREE_BYTES", 1 << 16)
        files = [log_file(disk / name, 1 << 19, 5) for name in ("envoy.log", "fleet.log")]
        for age, copy in enumerate(("fleet.log.1", "envoy.log.2", "envoy.log.1")):
            (disk / copy).write_bytes(b"x" * 4096)
            os.utime(disk / copy, (age, age))
        for file in files:
            (disk / file.names[-1]).write_bytes(b"now\n")
        rotate(files)
        assert len(contents(disk)) == 5
        fill(disk)
        remaining = []
        for _ in range(4):
            with capture_logs():
                rotate(files)
            remaining.append(sorted(contents(disk)))
            fill(disk)
        assert remaining[0] == ["envoy.log", "envoy.log.1", "envoy.log.2", "fleet.log"]
        assert remaining[1] == ["envoy.log", "envoy.log.1", "fleet.log"]
        assert remaining[2] == remaining[3] == ["envoy.log", "fleet.log"]
        assert (disk / "envoy.log").read_bytes() == b"now\n"


async def test_a_program_starts_without_its_log_and_reopens_it_at_the_next_start(
    tmp_path: Path,
) -> None:
    logs_dir = tmp_path / "logs"
    logs_dir.write_text("no folder")
    supervisor = Supervisor(logs_dir)
    program = Program("echo", ["/bin/sh", "-c", "echo said; exec sleep 600"])
    with capture_logs() as lines:
        await supervisor.start(program)
    assert [line["event"] for line in lines] == ["log_file_unavailable"]
    logs_dir.unlink()
    assert program.process is not None
    old = program.process
    await supervisor.restart("echo")
    assert await exit_code(old) != 0
    await eventually_async((logs_dir / "echo.log").read_text)
    await supervisor.stop_all()
    assert (logs_dir / "echo.log").read_text() == "said\n"
