"""What an installation with some extras can do, and what it says if an extra is missing."""

from importlib import metadata

import pytest

from evershell.cli.main import COMMANDS
from tests.deploy.long.installation.installation import IMPORT, run

# Runs each of its arguments as a command line of `evershell`. Prints the exit code and the output
# on one line.
COMMAND = """
import shlex
from click.testing import CliRunner
from evershell.cli.main import main

for line in sys.argv[1:]:
    result = CliRunner().invoke(main, shlex.split(line), prog_name="evershell")
    print(result.exit_code, result.output.strip().replace("\\n", " "))
"""


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


@pytest.mark.parametrize("extra", ["agent", "server", "local"])
def test_a_command_needs_no_more_than_its_extra(extra: str) -> None:
    names = [name for name, command in COMMANDS.items() if command.extra == extra]
    done = run(COMMAND, *(f"{name} --help" for name in names), extras=extra)
    assert done.returncode == 0, done.stderr
    for line, name in zip(done.stdout.splitlines(), names, strict=True):
        assert line.startswith(f"0 Usage: evershell {name}"), line
