"""The commands of operators that need no stack: settings and refused options."""

from pathlib import Path

import pytest
from click import ClickException
from click.testing import CliRunner

from evershell.cli.main import main
from evershell.commands.environment import read_settings


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (
            {"TLS_CERT_FILE": "edge.pem"},
            "TLS_KEY_FILE: Value error, TLS_CERT_FILE and TLS_KEY_FILE must be set together",
        ),
        ({"TLS_KEY_FILE": "edge.key"}, "must be set together"),
        ({"TLS_CLIENT_CA_FILE": "ca.pem"}, "TLS_CLIENT_CA_FILE: Value error, needs TLS_CERT_FILE"),
    ],
)
def test_incomplete_tls_settings_are_refused(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ClickException, match=expected):
        read_settings()


def test_a_command_without_a_stack_says_how_to_start_one(tmp_path: Path) -> None:
    environment = {"STATE_DIR": str(tmp_path), "DATABASE_URL": ""}
    result = CliRunner().invoke(main, ["keys", "list", "--org", "org_1"], env=environment)
    assert result.exit_code == 1
    assert f"no stack runs in {tmp_path}. Start one with `evershell up`" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--org", "org 1", "--template", "full_access"], "--org: must be"),
        (
            ["--org", "org_1", "--template", "everything"],
            "is not one of 'full_access', 'submit_observe', 'read_only'",
        ),
        (["--org", "org_1", "--template", "read_only", "--name", "x" * 201], "at most 200"),
        (
            ["--org", "org_1", "--template", "read_only", "--create-org", "-Acme"],
            "--create-org: must be",
        ),
        (["--org", "new", "--template", "read_only"], "--create-org: is required with --org new"),
        (
            ["--org", "org_1", "--template", "read_only", "--expires-in", "0s"],
            "--expires-in: must be more than 0 s",
        ),
        (
            ["--org", "org_1", "--template", "read_only", "--expires-in", "soon"],
            "is not a duration",
        ),
    ],
)
def test_a_key_with_invalid_options_is_refused(arguments: list[str], expected: str) -> None:
    result = CliRunner().invoke(main, ["keys", "create", *arguments])
    assert (result.exit_code, result.stdout) == (2, "")
    assert expected in result.stderr


def test_an_invalid_database_url_is_not_printed(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        main,
        ["keys", "list", "--org", "org_1"],
        env={"DATABASE_URL": "postgress://me:secret@host/db"},
    )
    assert (result.exit_code, result.stdout) == (1, "")
    assert "DATABASE_URL is not a valid URL" in result.stderr
    assert "secret" not in result.stderr
