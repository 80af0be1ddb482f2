"""Measures the files of the workspaces on this machine, and cancels the task of a workspace at the
limit.

A tool may write while it is measured, and may hide a folder from a controller that does not run as
root. So this limits what tools write by mistake; it is not a quota.
"""

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import structlog

from evershell.core import task_lifecycle
from evershell.core.ports import Clock, Store
from evershell.fleet.periodic import paced

_log = structlog.get_logger()

# Each file and folder counts as at least this size, so that the number of files is limited too.
_MIN_BYTES = 4096


class FileLimit:
    """Enforces WORKSPACE_FILES_MB, for one term of leadership."""

    def __init__(
        self,
        pods_dir: Path,
        limit_mb: int,
        store: Store,
        clock: Clock,
        measured: Callable[[int, int, int], None] = lambda largest, total, limit: None,
        *,
        leads: Callable[[], bool] = lambda: True,
    ) -> None:
        """Measures the folders `files` of the pods below `pods_dir`.

        Calls `measured` with the size of the largest workspace, the size of all workspaces, and the
        limit, in bytes.
        """
        self._pods_dir = pods_dir
        self._limit_mb = limit_mb
        self._limit_bytes = limit_mb * 2**20
        self._store = store
        self._clock = clock
        self._measured = measured
        self._leads = leads

    async def sweep(self) -> None:
        """Measures each workspace once. Raises UnavailableError."""
        largest = total = 0
        for workspace_id in await asyncio.to_thread(_names, self._pods_dir):
            folder = self._pods_dir / workspace_id / "files"
            size = await paced(asyncio.to_thread(size_of, folder, self._limit_bytes))
            largest, total = max(largest, size), total + size
            if size >= self._limit_bytes and self._leads():
                await self._cancel(workspace_id)
        self._measured(largest, total, self._limit_bytes)

    async def _cancel(self, workspace_id: str) -> None:
        change = await self._store.transition(
            workspace_id,
            lambda locked: task_lifecycle.apply_file_limit(locked, self._limit_mb, self._clock()),
        )
        if change is not None and change.events and change.task is not None:
            _log.info("limit_reached", workspace_id=workspace_id, task_id=change.task.id)


def size_of(folder: Path, limit_bytes: int) -> int:
    """The disk space of everything below the folder, in bytes. Stops at the limit.

    Follows no links, and skips everything that cannot be read.
    """
    total, folders = 0, [str(folder)]
    while folders and total < limit_bytes:
        with suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                with suppress(OSError):
                    blocks = entry.stat(follow_symlinks=False).st_blocks
                    total += max(_MIN_BYTES, blocks * 512)
                if total >= limit_bytes:
                    break
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
    return total


def _names(folder: Path) -> list[str]:
    try:
        return [each.name for each in folder.iterdir()]
    except FileNotFoundError:
        return []
