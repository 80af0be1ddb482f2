"""Other values for constants of the programs that a stack starts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Python runs this at its start. A module has its values once it is imported.
_SITECUSTOMIZE = """
import sys
from importlib.machinery import PathFinder

class WithConstants:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name not in {constants}:
            return None
        spec = PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module
        def exec_module(module):
            execute(module)
            vars(module).update({constants}[name])
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, WithConstants)
"""
# The logs of programs are rotated early.
SMALL_LOGS = {"evershell.stack.up": {"LOG_MAX_BYTES": 64 * 1024}}


def with_constants(folder: Path, constants: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The environment of a stack whose modules have these constants. `folder` gets their file.

    Agents do not read the file.
    """
    folder.mkdir(exist_ok=True)
    with (folder / "sitecustomize.py").open("a") as file:
        file.write(_SITECUSTOMIZE.format(constants=constants))
    return {"PYTHONPATH": str(folder)}


def crash_points_in(points: Path) -> dict[str, str]:
    """The environment of a stack in which files in the folder `points` arm crash points."""
    constants = {"evershell.pod.crash_points": {"FOLDER": str(points)}}
    return with_constants(points.with_name("constants"), constants)
