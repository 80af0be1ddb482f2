"""The error messages of programs that cannot start, and of operators' commands."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click import ClickException
from click.testing import CliRunner

from evershell.app import removed_settings
from evershell.app.removed_settings import RENAMED, refuse_removed_settings
from evershell.app.settings import Settings
from evershell.app.worker import worker
from evershell.cli.main import main
from evershell.commands.environment import read_settings
from evershell.core.errors import OperatorError
from evershell.telemetry import turns
from evershell.telemetry.metrics import Metrics
from evershell.telemetry.turns import TurnCount
from tests.support.programs import run
from tests.support.waiting import eventually_async

WAIT_SECONDS = 60.0


def test_a_program_without_its_key_or_its_database_fails_with_a_message(tmp_path: Path) -> None:
    without_database = run("serve", tmp_path)
    assert (without_database.returncode, without_database.stdout) == (1, "")
    assert without_database.stderr.startswith("Error: DATABASE_URL is not set.")
    without_key = run("fleet", tmp_path, DATABASE_URL="postgresql:///nowhere")
    assert without_key.returncode == 1
    assert without_key.stderr.startswith(f"Error: {tmp_path / 'control-plane.jwk'} cannot be read")


def test_a_removed_setting_is_refused_with_what_to_do_instead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TOOL_PROCESSES", "")
    read_settings()
    monkeypatch.setenv("POD_END_SECONDS", "5")
    monkeypatch.setenv("pod_namespace", "agents")
    with pytest.raises(ClickException) as refused:
        read_settings()
    assert refused.value.message == (
        "Some settings no longer exist. POD_END_SECONDS: Unset it: only tests used it. The time is "
        "20 s. POD_NAMESPACE: Pods are in the namespace of the service account, or of the "
        "kubeconfig."
    )
    # RUN_ID means that `up` has started the program. An earlier version of `up` may pass these
    # settings, so they are not refused.
    monkeypatch.setenv("RUN_ID", "run_1")
    read_settings()


@pytest.mark.parametrize(("port", "address"), [("0", ""), ("9001", "127.0.0.1:9001")])
def test_a_program_keeps_its_metrics_under_an_up_of_the_previous_version(
    port: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("METRICS_HOST", "127.0.0.1"), ("METRICS_PORT", port)):
        monkeypatch.setenv(name, value)
    # So that the variable that the program sets is removed after the test.
    monkeypatch.setenv("METRICS_ADDRESS", "")
    with pytest.raises(ClickException, match=r"METRICS_PORT: Set METRICS_ADDRESS to host:port\."):
        read_settings()
    # `restart` checks the settings of the operator.
    refuse_removed_settings(os.environ, but=RENAMED)
    monkeypatch.setenv("RUN_ID", "run_1")
    assert read_settings().metrics_address == address


def test_no_setting_is_removed_and_exists() -> None:
    assert not removed_settings._INSTEAD.keys() & {name.upper() for name in Settings.model_fields}


def test_an_edge_needs_its_workers_as_arguments(tmp_path: Path) -> None:
    def rendered(*workers: str, **variables: str) -> str:
        path = tmp_path / "envoy.yaml"
        path.unlink(missing_ok=True)
        command = ["edge", "--render", str(path), *workers]
        done = CliRunner().invoke(main, command, env={"STATE_DIR": str(tmp_path), **variables})
        return path.read_text() if done.exit_code == 0 else done.stderr

    assert "Missing HOST:PORT of the workers." in rendered()
    assert "EDGE_WORKERS: Give `evershell edge` the workers" in rendered(EDGE_WORKERS="a:1")
    config = rendered("a:1", "b:2")
    assert '"address": "b", "port_value": 2' in config
    # An `up` of version 0.1.0 renders the configuration like this.
    assert rendered(EDGE_WORKERS="a:1,b:2", RUN_ID="run_1") == config


@pytest.mark.parametrize("program", ["serve", "up"])
def test_signing_keys_that_are_not_valid_are_refused_in_one_line(
    program: str, tmp_path: Path
) -> None:
    """tests/unit/auth/test_signing_keys.py tests other contents, and the command `rotate`."""
    path = tmp_path / "control-plane.jwk"
    # Nested more deeply than the JSON parser recurses.
    path.write_text("[" * 100_000)
    refused = run(program, tmp_path, DATABASE_URL="postgresql:///nowhere")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == (
        f"Error: {path} is not valid: it is neither a private JWK nor a set of them.\n"
    )


@pytest.mark.parametrize("name", ["DATABASE_URL", "DATABASE_SESSION_URL"])
async def test_an_invalid_url_of_the_database_is_not_printed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql:///nowhere")
    monkeypatch.setenv(name, "postgresql://user:pass word@host")
    with pytest.raises(OperatorError) as raised:
        async with worker(Settings.read(), Metrics(), 0):
            pass
    assert str(raised.value) == f"{name} is not a valid URL of PostgreSQL."


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REST_PORT", "eighty"),
        ("WORKERS", "0"),
        ("RATE_LIMIT", "1"),
        ("LEASE_SECONDS", "inf"),
        ("LEASE_SECONDS", "11"),
        ("MODEL_TIMEOUT_SECONDS", "inf"),
        ("TOOL_TIMEOUT_SECONDS", "inf"),
        ("TLS_CLIENT_CA_FILE", "ca.pem"),
        ("METRICS_ADDRESS", "9100"),
    ],
)
def test_the_error_names_an_invalid_setting(tmp_path: Path, name: str, value: str) -> None:
    failed = CliRunner().invoke(main, ["up"], env={"STATE_DIR": str(tmp_path), name: value})
    assert failed.exit_code == 1
    assert failed.stderr.startswith(f"Error: The environment is not valid. {name}: ")


@pytest.mark.parametrize("spec", ["{", '{"workspace_id": "ws_1"}'])
def test_an_agent_refuses_an_invalid_spec_in_one_line(spec: str) -> None:
    refused = subprocess.run(
        [sys.executable, "-m", "evershell.agents"],
        input=spec,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("The spec on standard input is not valid: ")
    assert refused.stderr.count("\n") == 1


def test_a_state_folder_given_through_a_link_is_the_same_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Agents are found by the path of the state folder, which is in their environment."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.setenv("STATE_DIR", str(tmp_path / "real"))
    direct = Settings.read().state_dir
    monkeypatch.setenv("STATE_DIR", str(tmp_path / "link"))
    assert Settings.read().state_dir == direct


def test_an_opened_file_does_not_replace_a_closed_standard_error() -> None:
    """Otherwise the lines of the log would be written to the file."""
    program = (
        "import contextlib, os, sys\n"
        "from evershell.cli.main import main\n"
        "with contextlib.suppress(SystemExit):\n"
        "    main(['cancel', '--help'])\n"
        "print(os.readlink('/proc/self/fd/2'))\n"
    )
    command = ["/bin/sh", "-c", 'exec "$0" "$@" 2>&-', sys.executable, "-c", program]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=30)
    assert done.stdout.splitlines()[-1] == os.devnull


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("", "nowhere. Start one with `evershell up`"),
        ("postgress://me:secret@host/db", "DATABASE_URL is not a valid URL"),
    ],
)
def test_a_command_without_a_database_says_why(url: str, expected: str) -> None:
    environment = {"STATE_DIR": "nowhere", "DATABASE_URL": url}
    result = CliRunner().invoke(main, ["keys", "list", "--org", "org_1"], env=environment)
    assert (result.exit_code, result.stdout) == (1, "")
    assert expected in result.stderr and "secret" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--org", "org 1", "--template", "full_access"], "--org: must be"),
        (["--org", "org_1", "--template", "everything"], "is not one of 'full_access'"),
        (["--org", "new", "--template", "read_only"], "--create-org: is required with --org new"),
        (
            ["--org", "org_1", "--template", "read_only", "--expires-in", "0s"],
            "--expires-in: must be more than 0 s",
        ),
    ],
)
def test_a_key_with_invalid_options_is_refused(arguments: list[str], expected: str) -> None:
    result = CliRunner().invoke(main, ["keys", "create", *arguments])
    assert (result.exit_code, result.stdout) == (2, "")
    assert expected in result.stderr


# A fleet controller that waits for input before it is able to lead.
SLOW_CONTROLLER = """
import asyncio
from contextlib import asynccontextmanager
from evershell.app import fleet
from evershell.app.settings import Settings

@asynccontextmanager
async def wired(*_):
    await asyncio.sleep(0.01)
    print("entered", flush=True)
    await asyncio.to_thread(input)
    yield asyncio.Event().wait

fleet.controller = wired
asyncio.run(fleet.fleet(Settings.read()))
"""


async def test_a_controller_makes_no_turn_before_it_can_lead(tmp_path: Path) -> None:
    """After the controller's first turn, a rolling restart would stop the other controller."""
    count = TurnCount()
    environment = os.environ | {
        "STATE_DIR": str(tmp_path),
        "METRICS_ADDRESS": "",
        turns.VARIABLE: str(count.descriptor),
    }
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SLOW_CONTROLLER),
        env=environment,
        pass_fds=(count.descriptor,),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    count.close_descriptor()
    try:
        assert program.stdin is not None and program.stdout is not None
        assert await program.stdout.readline() == b"entered\n"
        assert count.read() == 0
        program.stdin.write(b"\n")
        await eventually_async(lambda: count.read() > 0, WAIT_SECONDS)
    finally:
        program.kill()
        await program.communicate()
