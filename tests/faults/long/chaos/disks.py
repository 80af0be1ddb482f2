"""The small disks of a stack, for the folders of the pods, the logs and the embedded database."""

import shutil
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from evershell.stack import postgres
from tests.faults.long.chaos.plan import Target
from tests.support import small_disk

_MIB = 1 << 20
# A new database cluster takes 40 MiB, and a minute of calls with 20 workspaces adds at most 32 MiB
# of write-ahead log (measured).
_SIZES = {Target.PODS: 32 * _MIB, Target.LOGS: 64 * _MIB, Target.DATABASE: 160 * _MIB}
_LOG_BYTES_PER_SECOND = _MIB // 2
_DATABASE_BYTES_PER_SECOND = _MIB


class Disks:
    """Fills and frees the disks."""

    def __init__(self, places: Mapping[Target, tuple[Path, ...]]) -> None:
        self._places = places
        # How many faults currently fill each disk. Faults may overlap; the last one to end frees
        # the disk.
        self._full: Counter[Target] = Counter()

    def has(self, target: Target) -> bool:
        """Whether the target is on a small disk."""
        return target in self._places

    def fill(self, target: Target) -> None:
        """Fills the disk until `free` is called."""
        self._full[target] += 1
        self.keep_full(target)

    def keep_full(self, target: Target) -> None:
        """Fills the space that programs have freed since the last call."""
        for place in self._places[target]:
            small_disk.fill(place)

    def free(self, target: Target) -> None:
        """Ends the effect of one `fill`, and frees the disk if no other fault fills it."""
        self._full[target] -= 1
        if not self._full[target]:
            for place in self._places[target]:
                small_disk.free(place)


@contextmanager
def disks(state_dir: Path, seconds: float) -> Iterator[Disks]:
    """Mounts small disks before the stack starts, or none if this machine refuses mounts.

    At the end, moves the content of each disk to the folder on which it was mounted.
    """
    if small_disk.refusal():
        yield Disks({})
        return
    places = {
        # These two folders are on two disks. A fault fills both disks.
        Target.PODS: (state_dir / "pods", state_dir / "fleet"),
        Target.LOGS: (state_dir / "logs",),
        Target.DATABASE: (postgres.places(state_dir).data_dir.parent,),
    }
    grown = {
        Target.LOGS: int(seconds * _LOG_BYTES_PER_SECOND),
        Target.DATABASE: int(seconds * _DATABASE_BYTES_PER_SECOND),
    }
    with ExitStack() as mounted:
        for target, place in [
            (target, place) for target, folders in places.items() for place in folders
        ]:
            mounted.enter_context(_kept(place, _SIZES[target] + grown.get(target, 0)))
        yield Disks(places)


@contextmanager
def _kept(place: Path, size_bytes: int) -> Iterator[None]:
    aside = place.with_name(f"{place.name}.kept")
    with ExitStack() as stack:
        stack.callback(_move, aside, place)
        with small_disk.small_disk(place, size_bytes):
            try:
                yield
            finally:
                small_disk.free(place)
                shutil.copytree(
                    place, aside, symlinks=True, ignore=_special, copy_function=_copy_if_there
                )


def _copy_if_there(source: str, destination: str) -> None:
    """Copies a file, unless a program that is ending has removed it."""
    with suppress(FileNotFoundError):
        shutil.copy2(source, destination)


def _move(source: Path, destination: Path) -> None:
    """Moves the content of one folder to another."""
    shutil.copytree(source, destination, symlinks=True, dirs_exist_ok=True)
    shutil.rmtree(source)


def _special(folder: str, names: list[str]) -> list[str]:
    """Returns the names of sockets and pipes, which cannot be copied."""
    modes = {name: (Path(folder) / name).lstat().st_mode for name in names}
    return [name for name, mode in modes.items() if stat.S_ISSOCK(mode) or stat.S_ISFIFO(mode)]
