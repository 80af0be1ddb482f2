"""Logs of programs: rotations keep every line, and programs go on if a disk is full or hangs."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from evershell.stack import log_files
from evershell.stack.log_files import LogFile
from evershell.stack.supervisor import Program, Supervisor
from evershell.telemetry.logs import Sink
from tests.support.small_disk import fill, free, small_disk
from tests.support.waiting import eventually, eventually_async

MAX_BYTES = 1 << 16
LINE = "x" * 999


@pytest.fixture(autouse=True)
def _retries_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_files, "_RETRY_SECONDS", 0.01)


def end(log_file: LogFile) -> None:
    log_file.close()
    log_file.wait(20)
    assert not log_file._thread.is_alive()


def lines(folder: Path) -> list[str]:
    """Returns the lines of all files, the oldest line first."""
    files = sorted(folder.glob("*.log*"), key=lambda path: -int("0" + path.suffix.strip(".log")))
    return "".join(path.read_text() for path in files).splitlines()


def test_rotation_loses_no_line_of_two_processes(tmp_path: Path) -> None:
    """During a rolling restart, two processes write at the same time."""
    log_file = LogFile(tmp_path / "envoy.log", MAX_BYTES, 100)
    program = (
        "import os, sys\n"
        "for i in range(4000): os.write(1, f'{sys.argv[1]} {i} {100 * sys.argv[2]}\\n'.encode())"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", program, name, "x"], stdout=log_file.descriptor)
        for name in ("old", "new")
    ]
    assert [process.wait() for process in processes] == [0, 0]
    end(log_file)
    found = [line.split() for line in lines(tmp_path)]
    for name in ("old", "new"):
        assert [int(number) for of, number, _ in found if of == name] == list(range(4000))
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert len(sizes) > 3 and max(sizes.values()) <= MAX_BYTES, sizes


@pytest.mark.parametrize("files", [1, 3])
def test_a_log_has_at_most_so_many_files(tmp_path: Path, files: int) -> None:
    log_file = LogFile(tmp_path / "fleet.log", MAX_BYTES, files)
    for _ in range(300):
        os.write(log_file.descriptor, f"{LINE}\n".encode())
    os.write(log_file.descriptor, b"last\n")
    end(log_file)
    names = ["fleet.log", "fleet.log.1", "fleet.log.2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names[:files]
    assert (tmp_path / "fleet.log").read_text().endswith("last\n")
    assert (tmp_path / "fleet.log").stat().st_size <= MAX_BYTES


def test_other_lines_do_not_displace_errors(tmp_path: Path) -> None:
    """Errors of a worker, an access log, Envoy and PostgreSQL are kept whole, once and in order."""
    errors = [
        b'{"event": "unexpected_error", "level": "error", "text": "a"}',
        b'{"event":"edge_call","status":503}',
        b"[2026-11-30 12:00:00.000][7][critical][main] it ends",
        b'{"level": "critical", "status": 500}',
        *(
            b"2026-11-30 12:00:00.000 UTC [7] %s:  it fails " % level
            for level in (b"ERROR", b"FATAL", b"PANIC")
        ),
    ]
    others = [
        b"x" * 999,
        b'{"event":"edge_call","user_agent":"\\"level\\":\\"error\\" \\"status\\":503"}',
        b'{"event":"edge_call","user_agent":"][7][error]["}',
        b"[2026-11-30 12:00:00.000][7][warning][main] [7][error]",
        b"2026-11-30 12:00:00.000 UTC [7] LOG:  2026-11-30 12:00:00.000 UTC [7] ERROR:  no",
        b"2026-11-30 12:00:00.000 UTC [7] STATEMENT:  x\n\t2026-11-30 12:00:00.000 UTC [7] ERROR:",
    ]
    log_file = LogFile(tmp_path / "envoy.log", MAX_BYTES, 2)
    expected = []
    with os.fdopen(os.dup(log_file.descriptor), "wb", buffering=0) as pipe:
        os.set_blocking(pipe.fileno(), True)
        for number in range(200):
            error = errors[number % len(errors)] + b" %d" % number
            expected.append(error)
            # The pipe may cut lines anywhere.
            for part in (error[:30], error[30:] + b"\n", b"\n".join([*others, *others]), b"\n"):
                pipe.write(part)
    end(log_file)
    assert (tmp_path / "errors" / "envoy.log").read_bytes().splitlines() == expected
    kept = b"".join(path.read_bytes() for path in tmp_path.glob("envoy.log*"))
    assert expected[0] + b"\n" not in kept


def test_no_link_is_followed_and_no_pipe_blocks(tmp_path: Path) -> None:
    victim, folder = tmp_path / "victim", tmp_path / "logs"
    victim.write_bytes(b"v" * MAX_BYTES)
    folder.mkdir()
    (folder / "link").symlink_to(victim)
    (folder / "hard").hardlink_to(victim)
    os.mkfifo(folder / "pipe")
    for name in ("link", "hard", "pipe"):
        log_file = LogFile(folder / name, MAX_BYTES, 2)
        os.write(log_file.descriptor, b"said")
        end(log_file)
        assert (folder / name).read_bytes() == b"said"
    assert victim.read_bytes() == b"v" * MAX_BYTES


def full_disk(folder: Path) -> Callable[[], None]:
    fill(folder)
    return lambda: free(folder)


def no_folder(folder: Path) -> Callable[[], None]:
    folder.rmdir()
    folder.write_text("no folder")
    return folder.unlink


@pytest.mark.parametrize("obstruct", [full_disk, no_folder])
def test_a_program_without_its_log_counts_lost_lines_and_goes_on(
    tmp_path: Path, obstruct: Callable[[Path], Callable[[], None]]
) -> None:
    folder = tmp_path / "logs"
    with small_disk(tmp_path, 4 << 20):
        folder.mkdir()
        log_file = LogFile(folder / "worker-0.log", MAX_BYTES, 100)
        assert not os.get_blocking(log_file.descriptor)
        sink = Sink(log_file.descriptor, lambda count: f"lost {count}")
        repair = obstruct(tmp_path if obstruct is full_disk else folder)
        written = 0
        with capture_logs() as events:
            while not sink.lost_lines:
                sink.info(f"{written} {LINE}")
                written += 1
            eventually(lambda: events)
        assert [event["event"] for event in events] == ["log_file_unavailable"]
        lost = sink.lost_lines
        repair()

        def continues() -> bool:
            sink.info("again")
            try:
                return "again" in lines(folder)
            except FileNotFoundError:
                # A file was renamed in the meantime.
                return False

        eventually(continues)
        end(log_file)
        found = [line.split()[0] for line in lines(folder)]
        # All earlier lines are there, and none of them twice.
        assert found[: written - 1] == [str(number) for number in range(written - 1)]
        assert f"lost {sink.lost_lines}" in lines(folder) and sink.lost_lines >= lost


def test_a_full_disk_loses_its_oldest_files(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, 1 << 20):
        for age, name in enumerate(("fleet.log.1", "envoy.log.2", "envoy.log.1")):
            (disk / name).write_bytes(b"x" * 4096)
            os.utime(disk / name, (age, age))
        fill(disk)
        log_file = LogFile(disk / "envoy.log", MAX_BYTES, 5)
        os.write(log_file.descriptor, b"now\n")
        end(log_file)
        assert (disk / "envoy.log").read_text() == "now\n"
        assert not (disk / "fleet.log.1").exists() and (disk / "envoy.log.2").exists()


async def test_a_program_starts_without_its_log(tmp_path: Path) -> None:
    logs_dir = tmp_path / "logs"
    logs_dir.write_text("no folder")
    supervisor = Supervisor(logs_dir)
    await supervisor.start(Program("echo", ["/bin/sh", "-c", "echo said; exec sleep 600"]))
    logs_dir.unlink()
    await eventually_async(lambda: (logs_dir / "echo.log").exists())
    await supervisor.stop_all()
    assert (logs_dir / "echo.log").read_text() == "said\n"
