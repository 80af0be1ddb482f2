"""Reads the stacks that py-spy has sampled, and says to which part of a call each belongs.

A stack is a sequence of frames, the root first. py-spy writes a frame as `function (file)`, and a
frame of native code as `symbol (library or source file)`.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

Stack = tuple[str, ...]

SIGNAL = "signal"
DATABASE = "database path"
LOG = "log line"
CODEC = "codec"
INTERCEPTORS = "interceptors"
USE_CASE = "servicer and use case"
ENGINE = "gRPC engine"
LOOP = "event loop"
REST = "rest"
PARTS = (ENGINE, INTERCEPTORS, LOG, CODEC, USE_CASE, DATABASE, SIGNAL, LOOP, REST)

# The part of a stack is that of the frame nearest to the leaf whose file is listed here.
_OWNERS = {
    SIGNAL: (
        "evershell/fleet/",
        "evershell/pod/",
        "evershell/auth/pod_tokens.py",
        "grpc/aio/_call.py",
        "grpc/aio/_channel.py",
    ),
    DATABASE: ("evershell/store/", "psycopg", "libpq"),
    LOG: (
        "evershell/api/interceptors/request_log.py",
        "evershell/telemetry/logs.py",
        "structlog/",
    ),
    CODEC: ("evershell/api/codec.py", "evershell/api/payloads.py"),
    USE_CASE: ("evershell/core/", "evershell/api/workspace_servicer.py"),
    INTERCEPTORS: ("evershell/api/", "evershell/auth/"),
}
# If no frame has an owner, it is the part of the frame nearest to the leaf that is listed here.
# These libraries also work for the parts above, and then belong to them.
_LIBRARIES = {
    CODEC: ("protobuf", "evershell/workspace/", "evershell/agent/"),
    ENGINE: ("grpc",),
    LOOP: ("uvloop", "asyncio"),
}
# What runs before the event loop does, in every stack of the main thread.
_STARTUP = (
    "<frozen runpy>",
    "evershell/commands/__main__.py",
    "evershell/commands/",
    "evershell/cli/",
    "click/",
    "asyncio/runners.py",
    "uvloop/__init__.py",
    "threading.py",
)
# A thread in one of these waits, and uses no processor time.
_WAITS = re.compile(r"^(epoll_p?wait|ppoll|poll|select|nanosleep|pthread_cond_\w*wait|sem_\w*wait)")
# py-spy names a file from the highest folder with an `__init__.py` on, and `evershell` has none.
_PARTS_OF_EVERSHELL = (
    *("agents/", "api/", "app/", "auth/", "cli/", "commands/", "core/", "fleet/", "pod/", "store/"),
    *("telemetry/", "workspace/v1/", "agent/v1/"),
)
_FRAME = re.compile(r"^(?P<name>.*) \((?P<file>[^()]*?)(:\d+)?\)$")
_UVLOOP_SOURCES = ("loop.c", "core.c", "linux.c", "stream.c", "queue.h", "loop-watcher.c")


def read(lines: Iterable[str]) -> Counter[Stack]:
    """The number of samples of each stack, without those of threads that wait."""
    counts: Counter[Stack] = Counter()
    for line in lines:
        stack, _, count = line.rpartition(" ")
        frames = [_parsed(frame) for frame in stack.split(";")]
        if not any(_WAITS.match(name) for name, _ in frames):
            counts[_shortened(frames)] += int(count)
    return counts


def part(stack: Sequence[str]) -> str:
    """The part to which the leaf of a stack that `read` has returned belongs."""
    libraries: list[str] = []
    for frame in reversed(stack):
        file = _file(frame)
        if owner := _listed(file, _OWNERS):
            # These are around the whole call, and receive messages and send replies for it.
            is_around = owner in (INTERCEPTORS, LOG)
            return ENGINE if is_around and ENGINE in libraries else owner
        if library := _listed(file, _LIBRARIES):
            libraries.append(library)
    return libraries[0] if libraries else REST


def _listed(file: str, places: Mapping[str, tuple[str, ...]]) -> str | None:
    """The part whose files include this one."""
    return next((name for name, files in places.items() if file.startswith(files)), None)


def _parsed(frame: str) -> tuple[str, str]:
    """The name of the function, and the file or library. Native code of CPython has no file."""
    found = _FRAME.match(frame)
    if found is None:
        return frame, ""
    name, file = found["name"], found["file"]
    if file.startswith(_PARTS_OF_EVERSHELL):
        file = f"evershell/{file}"
    if file in _UVLOOP_SOURCES or file.startswith("uvloop/loop."):
        return "", "uvloop"
    if file == "_asynciomodule.c" or file.startswith("_asyncio."):
        return "", "asyncio"
    if file.endswith((".c", ".h")) or file.startswith(("libpython", "ld-linux")):
        return (name, "python") if name == "gc_collect_main" else (name, "")
    if file.startswith("libc."):
        return ("", "") if name.startswith("0x") else (name, "")
    if ".so" in file:
        return "", _library(file)
    return name, file


def _library(file: str) -> str:
    """The name of a shared library, without the version and the platform."""
    folder, _, name = file.rpartition("/")
    package = folder.split("/", 1)[0]
    plain = re.split(r"[.-]", name, maxsplit=1)[0]
    if plain == "cygrpc":
        return "grpc core"
    return plain if not package else f"{package}/{plain}"


def _shortened(frames: Sequence[tuple[str, str]]) -> Stack:
    """Labels of the frames, without the start of the program and the inside of libraries."""
    labels: list[str] = []
    for name, file in frames:
        if file.startswith(_STARTUP) or (not file and not _is_system_call(name)):
            continue
        label = f"{name} ({file})" if name and file else name or file
        if not labels or labels[-1] != label:
            labels.append(label)
    return tuple(labels)


def _is_system_call(name: str) -> bool:
    return name in ("sendmsg", "recvmsg", "send", "recv", "write", "read", "writev", "epoll_ctl")


def _file(label: str) -> str:
    """The file or library of a frame's label."""
    return label.rpartition(" (")[2].removesuffix(")")
