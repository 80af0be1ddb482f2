"""Compiles the modules of the agent's program before the first agent starts.

Python stores compiled modules next to their sources. Agents cannot do that, because their sandbox
is read-only there. Without this step, every start of an agent would compile the modules that only
agents import. If the packages were installed uncompiled, it would even compile all modules.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress

_MODULES = (
    "evershell.agents.__main__",
    "evershell.agents.program",
    "evershell.telemetry.logs",
)
_HOSTED_MODEL = "evershell.agents.openai_model"
# Importing the SDK of a model for the first time takes some seconds.
_LIMIT_SECONDS = 60.0


def compile_agent_modules(model: str, environment: Mapping[str, str] | None = None) -> None:
    """Imports what an agent with this model imports. Blocks, and never raises.

    If nothing can be stored, agents still start, but more slowly. `environment` is the environment
    of the importing process. This program's PYTHONDONTWRITEBYTECODE does not apply to that process.
    """
    modules = _MODULES if model == "scripted" else (*_MODULES, _HOSTED_MODEL)
    with suppress(OSError, subprocess.SubprocessError):
        subprocess.run(
            [sys.executable, "-P", "-c", f"import {', '.join(modules)}"],
            env={"PATH": os.environ.get("PATH", os.defpath), **(environment or {})},
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_LIMIT_SECONDS,
        )
