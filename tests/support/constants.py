"""Replaces the values of constants in the programs that a stack starts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Python runs this code when it starts. When a module is imported, the code gives the module's
# constants their new values.
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
# For `with_constants`: makes the logs of programs rotate early.
SMALL_LOGS = {"evershell.stack.up": {"LOG_MAX_BYTES": 64 * 1024}}


def with_constants(folder: Path, constants: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Returns the environment variables that give constants in a stack's modules these values.

    Writes the values to a file in `folder`. Agents do not read this file.
    """
    folder.mkdir(exist_ok=True)
    with (folder / "sitecustomize.py").open("a") as file:
        file.write(_SITECUSTOMIZE.format(constants=constants))
    return {"PYTHONPATH": str(folder)}


def crash_points_in(points: Path) -> dict[str, str]:
    """Returns the environment variables that make `points` the folder of a stack's crash points.

    A file in this folder arms the crash point with the same name.
    """
    constants = {"evershell.pod.crash_points": {"FOLDER": str(points)}}
    return with_constants(points.with_name("constants"), constants)
