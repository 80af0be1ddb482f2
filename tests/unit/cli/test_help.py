"""The help of the commands, and the table of their exit codes."""

import re
import subprocess
import sys
from pathlib import Path

from evershell.cli.exit_codes import TABLE, ExitCode
from evershell.cli.main import COMMANDS


def test_the_list_of_commands_imports_none_of_them() -> None:
    program = (
        "import sys; from evershell.cli.main import main; "
        "main(['--help'], standalone_mode=False); "
        "sys.exit('grpc' in sys.modules or 'rich' in sys.modules)"
    )
    listed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert listed.returncode == 0, listed.stderr
    for name in COMMANDS:
        assert f"  {name} " in listed.stdout
    assert "Exit codes:\n    0  done" in listed.stdout


def test_the_documents_have_the_table_of_exit_codes() -> None:
    text = (Path(__file__).parents[3] / "docs" / "command-line.md").read_text()
    documented = dict(re.findall(r"^\| (\d) \| (.*) \|$", text, re.MULTILINE))
    rows = re.findall(r"^  (\d)  ((?:.|\n     )*)$", TABLE, re.MULTILINE)
    assert documented == {code: " ".join(meaning.split()) for code, meaning in rows}
    assert {int(code) for code in documented} == {*ExitCode, 1, 2}
