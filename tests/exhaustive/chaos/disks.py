"""The small disks of a stack: under the pods' folders, the logs and the embedded database, so that
each can be full.
"""

import shutil
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from server.stack import postgres
from tests.exhaustive.chaos.plan import Target
from tests.support import small_disk

_MIB = 1 << 20
# Measured: a cluster takes 40 MiB, and a minute of calls at 20 workspaces adds no more than 32 MiB
# of write-ahead log.
_SIZES = {Target.PODS: 32 * _MIB, Target.LOGS: 64 * _MIB, Target.DATABASE: 160 * _MIB}
_LOGS_A_SECOND = _MIB // 2
_DATABASE_A_SECOND = _MIB


class Disks:
    """Fills them and frees them."""

    def __init__(self, places: Mapping[Target, tuple[Path, ...]]) -> None:
        self._places = places
        # Faults may overlap: the last one to end frees the disk.
        self._full: Counter[Target] = Counter()

    def has(self, target: Target) -> bool:
        """Whether it can be filled."""
        return target in self._places

    def fill(self, target: Target) -> None:
        """From here on it is full, until `free`."""
        self._full[target] += 1
        self.keep_full(target)

    def keep_full(self, target: Target) -> None:
        """Takes what others have freed meanwhile."""
        for place in self._places[target]:
            small_disk.fill(place)

    def free(self, target: Target) -> None:
        """Ends one `fill`."""
        self._full[target] -= 1
        if not self._full[target]:
            for place in self._places[target]:
                small_disk.free(place)


@contextmanager
def disks(state_dir: Path, seconds: float) -> Iterator[Disks]:
    """Mounted before the stack starts; none where mounts are refused.

    What they hold in the end is left in the folders on which they were mounted.
    """
    if small_disk.refusal():
        yield Disks({})
        return
    places = {
        # What the controller keeps of the pods is full with them.
        Target.PODS: (state_dir / "pods", state_dir / "fleet"),
        Target.LOGS: (state_dir / "logs",),
        Target.DATABASE: (postgres.places(state_dir).data_dir.parent,),
    }
    grown = {
        Target.LOGS: int(seconds * _LOGS_A_SECOND),
        Target.DATABASE: int(seconds * _DATABASE_A_SECOND),
    }
    with ExitStack() as mounted:
        for target, place in [
            (target, place) for target, of_it in places.items() for place in of_it
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
                shutil.copytree(place, aside, symlinks=True, ignore=_special)


def _move(source: Path, destination: Path) -> None:
    """Moves what is in one folder to the other."""
    shutil.copytree(source, destination, symlinks=True, dirs_exist_ok=True)
    shutil.rmtree(source)


def _special(folder: str, names: list[str]) -> list[str]:
    """Sockets and pipes, which cannot be copied."""
    modes = {name: (Path(folder) / name).lstat().st_mode for name in names}
    return [name for name, mode in modes.items() if stat.S_ISSOCK(mode) or stat.S_ISFIFO(mode)]
