"""Replaces the values of constants in the programs that a stack starts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Python runs this code when it starts. It gives a module the new values as soon as the module is
# imported.
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
# Makes the logs of programs rotate early.
SMALL_LOGS = {"evershell.stack.up": {"LOG_MAX_BYTES": 64 * 1024}}


def with_constants(folder: Path, constants: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Returns an environment in which a stack's modules have these values of their constants.

    Writes the values to a file in `folder`, which agents do not read.
    """
    folder.mkdir(exist_ok=True)
    with (folder / "sitecustomize.py").open("a") as file:
        file.write(_SITECUSTOMIZE.format(constants=constants))
    return {"PYTHONPATH": str(folder)}


def crash_points_in(points: Path) -> dict[str, str]:
    """Returns an environment in which files in the folder `points` arm a stack's crash points."""
    constants = {"evershell.pod.crash_points": {"FOLDER": str(points)}}
    return with_constants(points.with_name("constants"), constants)
