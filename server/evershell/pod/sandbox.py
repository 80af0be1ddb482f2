"""The two sandboxes of a pod, which bubblewrap builds: bwrap(1).

The outer sandbox holds the agent. It has a PID namespace, whose init process is the agent: when the
agent ends, the kernel kills everything else in the pod. The agent sees the system's programs, its
own program (`_program`) and the workspace's files. It shares the network of the machine, because it
must reach the control plane and the model.

Each tool call has an inner sandbox, with its own namespaces of every kind. The tool sees the
system's programs and the workspace's files, but no other process and nothing of the agent. It has
no network, unless `ToolLimits.has_network` is true.
"""

import os
import resource
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import evershell

# The workspace's files, as the agent and its tools see them.
FILES = "/workspace"

_USR = Path("/usr")
# On most systems these are links to folders in /usr.
_TOP_LEVEL = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
# What programs need from /etc.
_ETC = (
    "alternatives",
    "ca-certificates",
    "group",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "mime.types",
    "nsswitch.conf",
    "passwd",
    "pki",
    "protocols",
    "services",
    "ssl/certs",
    "ssl/openssl.cnf",
)
_NETWORK_ETC = ("hosts", "resolv.conf")
_SCRATCH_BYTES = 256 * 2**20
# How many files a process of a tool call may have open, so that it cannot use up the machine's
# limit.
MAX_FILES = 4_096


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolLimits:
    """The limits of a tool call."""

    # The memory of all processes together. It does not include the files in the scratch folders,
    # which have their own limit.
    memory_bytes: int
    # The number of processes.
    processes: int
    # The size of each file that a tool writes.
    file_bytes: int
    # Whether tools share the network of the machine.
    has_network: bool = False


def agent_command(
    bwrap: str,
    command: Sequence[str],
    *,
    files: str,
    hidden: Path,
    writable: Iterable[Path],
    environment: Mapping[str, str],
    uid: int | None,
    info_fd: int,
) -> list[str]:
    """The command that runs an agent in its sandbox.

    `files` is the workspace's folder on the machine. `hidden` is a folder that the agent must not
    see. bwrap writes the id of the agent's process to `info_fd`. `environment` is added to the
    environment of the agent, but not of bwrap itself. If `uid` is given, the caller is root, and
    the agent runs as that user and group. Otherwise, the agent runs as the caller.
    """
    view = [*_system(), "--ro-bind", "/etc", "/etc", "--dev", "/dev", "--tmpfs", "/tmp"]  # noqa: S108
    view += ["--ro-bind-try", "/run/systemd/resolve", "/run/systemd/resolve"]
    program = _program(command, hidden)
    view += _folders("--ro-bind", program)
    view += _folders("--bind", writable)
    if any(hidden.is_relative_to(path) for path in (_USR, *program)):
        view += ["--tmpfs", str(hidden)]
    inner_files = files
    prefix: list[str] = []
    if uid is not None:
        # An outer bwrap runs as root and only builds the view: some folders are private to their
        # owner, and root mounts them where the agent's user can reach them. The inner bwrap
        # runs as the agent's user, and does the same as for any other caller.
        prefix = [bwrap, *view, "--bind", "/proc", "/proc", "--bind", files, FILES, "--cap-drop"]
        prefix += ["ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        prefix += ["--cap-add", "CAP_SETPCAP", "--", "setpriv", f"--reuid={uid}", f"--regid={uid}"]
        prefix += ["--clear-groups", "--bounding-set=-all", "--inh-caps=-all", "--"]
        inner_files = FILES
    own = [bwrap, "--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts"]
    own += ["--unshare-cgroup-try", "--as-pid-1", "--info-fd", str(info_fd), *view]
    own += ["--proc", "/proc", "--bind", inner_files, FILES, "--chdir", FILES]
    for name, value in environment.items():
        own += ["--setenv", name, value]
    return [*prefix, *own, "--", *command]


class ToolSandbox:
    """The sandboxes of tool calls, inside the sandbox of an agent."""

    def __init__(self, bwrap: str, limits: ToolLimits, system_calls: bytes) -> None:
        """`system_calls` is the filter of tool_filter.py."""
        self._bwrap = bwrap
        self.limits = limits
        # An in-memory file, which is open as long as this process runs.
        self._filter = os.memfd_create("tool-filter")
        os.write(self._filter, system_calls)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The descriptors that the command must inherit."""
        return (self._filter,)

    def command(self, command: Sequence[str]) -> list[str]:
        """The command that runs a tool call in a sandbox.

        Only one such command may start at a time.
        """
        # Rewinds the file, because the previous bwrap has read it to its end.
        os.lseek(self._filter, 0, os.SEEK_SET)
        limits = self.limits
        scratch = str(min(_SCRATCH_BYTES, limits.memory_bytes))
        # If the machine runs out of memory, choom makes the kernel kill tools first. It runs
        # outside of the sandbox, because nothing inside can write to /proc.
        own = ["choom", "-n", "1000", "--", self._bwrap]
        own += ["--unshare-all", "--unshare-user", "--disable-userns"]
        own += ["--seccomp", str(self._filter), *_system()]
        names = [*_ETC, *(_NETWORK_ETC if limits.has_network else ())]
        for name in names:
            own += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
        if limits.has_network:
            own += ["--share-net", "--ro-bind-try", "/run/systemd/resolve", "/run/systemd/resolve"]
        own += ["--proc", "/proc", "--dev", "/dev", "--hostname", "workspace"]
        # A shared mapping of /dev/zero would be memory that counts toward no limit. /dev/full takes
        # its place, because it also yields zeros, but cannot be mapped.
        own += ["--dev-bind", "/dev/full", "/dev/zero"]
        for folder in ("/tmp", "/dev/shm"):  # noqa: S108
            own += ["--perms", "1777", "--size", scratch, "--tmpfs", folder]
        own += ["--bind", FILES, FILES, "--chdir", FILES]
        # Without this, a tool could fill the memory that holds these folders.
        own += ["--remount-ro", "/dev", "--remount-ro", "/"]
        # Without this, a tool could lower the priority of the session that all agents share.
        own += ["--remount-ro", "/proc", "--"]
        own += ["nice", "-n", "10", "prlimit", "--core=0"]
        # `--data` limits the memory of a single process, so that a program that needs more gets an
        # error. The agent ends a tool call whose processes together exceed the limit.
        own += [f"--nproc={limits.processes}", f"--data={limits.memory_bytes}"]
        own += [f"--fsize={limits.file_bytes}"]
        # Without this, a tool could use up the open files of the machine.
        own += [f"--nofile={min(MAX_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1])}", "--"]
        return [*own, *command]


def _system() -> list[str]:
    options = ["--ro-bind", str(_USR), str(_USR)]
    for name in _TOP_LEVEL:
        path = Path("/", name)
        if path.is_symlink():
            options += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            options += ["--ro-bind", str(path), str(path)]
    return options


def _program(command: Sequence[str], hidden: Path) -> list[Path]:
    """The folders of this program, of its Python, and of the command.

    If the command names a file by an absolute path (also in the form `file.py:name`), the agent
    sees the file and its folder, or only the file if the folder is `/` or hidden. If the file is in
    a Python environment, the agent sees the whole environment.
    """
    paths: list[Path] = []

    def show(path: Path) -> None:
        if not any(path.is_relative_to(known) for known in (_USR, *paths)):
            paths.append(path)

    for each in (
        sys.prefix,
        sys.base_prefix,
        os.path.realpath(sys.base_prefix),
        *evershell.__path__,
        sys.executable,
    ):
        show(Path(each))
    for word in command:
        files = [path for path in (Path(word), Path(word.rpartition(":")[0])) if path.is_file()]
        for file in files:
            if not file.is_absolute():
                continue
            environment = file.parent.parent
            if (environment / "pyvenv.cfg").exists():
                show(environment)
                show(file.resolve().parent.parent)
            is_alone = file.is_relative_to(hidden) or file.parent == Path("/")
            show(file if is_alone else file.parent)
    return paths


def _folders(option: str, paths: Iterable[Path]) -> Iterator[str]:
    """Mounts the paths where they are on the machine."""
    created = set()
    for path in paths:
        for parent in reversed(path.parents[:-1]):
            if parent not in created:
                # Without this, bwrap copies the mode of the parent, which may be private.
                yield from ("--perms", "0755", "--dir", str(parent))
                created.add(parent)
        yield from (option, str(path), str(path))
