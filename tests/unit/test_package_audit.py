"""`make audit`: its exit code and its output, with a stand-in for pip-audit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".make" / "audit.py"
# The stand-in writes the given report, prints the given text, and exits with the given code.
STAND_IN = """
import sys
report, text, code = sys.argv[1:4]
(output,) = [each.partition("=")[2] for each in sys.argv if each.startswith("--output=")]
if report:
    open(output, "w").write(report)
sys.stderr.write(text)
sys.exit(int(code))
"""
GOOD = {"name": "good", "version": "1.0", "vulns": []}
BAD = {"name": "bad", "version": "2.0", "vulns": [{"id": "CVE-1", "fix_versions": ["2.1"]}]}
UNFIXED = {"name": "bad", "version": "2.0", "vulns": [{"id": "CVE-2", "fix_versions": []}]}
UNKNOWN = {"name": "own", "skip_reason": "not on the index"}


def audit(report: object, text: str = "", code: int = 0) -> tuple[int, str]:
    """Runs the script. Returns its exit code and its output."""
    stand_in = [sys.executable, "-c", STAND_IN]
    written = "" if report is None else json.dumps({"dependencies": report})
    done = subprocess.run(
        [sys.executable, SCRIPT, "locked.txt", "--", *stand_in, written, text, str(code)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("report", "text", "code", "exit_code", "printed"),
    [
        ([GOOD], "", 0, 0, "1 packages audited, 0 known vulnerabilities\n"),
        ([GOOD, BAD], "Found 1 known vulnerability", 1, 1, "bad 2.0: CVE-1, fixed in 2.1\n"),
        ([UNFIXED], "Found 1 known vulnerability", 1, 0, "bad 2.0: CVE-2, fixed in no version\n"),
        ([GOOD, UNKNOWN], "", 0, 0, "1 packages (not audited: own) audited, 0 known"),
        ([UNKNOWN], "", 0, 0, "the index has advisories for none"),
        (None, "Caused by: Failed to fetch: `x`", 1, 0, "the advisories cannot be fetched"),
        (None, "ERROR: locked.txt has no hashes", 1, 2, "has no hashes"),
        (None, "", 0, 2, "the audit failed"),
    ],
)
def test_an_audit_passes_only_without_a_vulnerability_or_a_network(
    report: object, text: str, code: int, exit_code: int, printed: str
) -> None:
    result = audit(report, text, code)
    assert (result[0], printed in result[1]) == (exit_code, True), result
