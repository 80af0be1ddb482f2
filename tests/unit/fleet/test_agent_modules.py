"""The modules of an agent are compiled before it starts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from evershell.fleet.local.agent_modules import compile_agent_modules

# Runs the program of an agent, which ends because it gets no spec. Prints the loaded modules that
# have a source, and no compiled form below the folder of compiled modules.
PROGRAM = """
import json, os, sys
from evershell.agents.__main__ import main
main()
specs = [getattr(module, "__spec__", None) for module in list(sys.modules.values())]
sources = [spec for spec in specs if spec and spec.cached and spec.origin.endswith(".py")]
print(json.dumps([spec.name for spec in sources if not os.path.exists(spec.cached)]))
"""


def test_an_agent_finds_all_its_modules_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    folder = {"PYTHONPYCACHEPREFIX": str(tmp_path)}
    compile_agent_modules("scripted", folder)
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM],
        env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", **folder},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        timeout=60,
    )
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize(("model", "is_hosted"), [("scripted", False), ("openai:small", True)])
def test_the_modules_of_a_hosted_model_are_compiled_if_agents_use_one(
    monkeypatch: pytest.MonkeyPatch, model: str, is_hosted: bool
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: commands.append(command))
    compile_agent_modules(model)
    assert ["openai_model" in command[-1] for command in commands] == [is_hosted]


def test_a_program_that_cannot_be_run_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    compile_agent_modules("scripted")
