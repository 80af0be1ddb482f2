"""The shared memory of Envoy."""

from pathlib import Path

import psutil


def shared_memory(envoy: psutil.Process) -> Path:
    """The segment of a running process, which Envoy does not remove itself."""
    command = envoy.cmdline()
    base_id = command[command.index("--base-id") + 1]
    return Path("/dev/shm") / f"envoy_shared_memory_{base_id}0"  # noqa: S108 - Envoy's choice
