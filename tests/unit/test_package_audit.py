"""`make audit`: its exit code and what it prints, with a stand-in for pip-audit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".make" / "audit.py"
# Writes this report, prints this text, and exits with this code.
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
UNKNOWN = {"name": "own", "skip_reason": "not on the index"}


def audit(report: object, text: str = "", code: int = 0) -> tuple[int, str]:
    """The exit code and the output of the script."""
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


def test_packages_without_a_vulnerability_pass() -> None:
    assert audit([GOOD]) == (0, "locked.txt: 1 packages audited, 0 known vulnerabilities\n")


def test_a_vulnerability_fails_and_names_the_fixed_version() -> None:
    code, printed = audit([GOOD, BAD], "Found 1 known vulnerability", 1)
    assert code == 1
    assert "  bad 2.0: CVE-1, fixed in 2.1\n" in printed


def test_a_package_that_was_not_audited_is_named() -> None:
    code, printed = audit([GOOD, UNKNOWN])
    assert (code, "  not audited: own\n" in printed) == (0, True)


def test_an_index_without_advisories_is_reported() -> None:
    code, printed = audit([UNKNOWN])
    assert (code, "not audited, because the index has advisories for none" in printed) == (0, True)


@pytest.mark.parametrize(
    "text",
    [
        "ERROR:pip_audit._cli:Could not connect to PyPI's vulnerability feed",
        "error: Request failed after 3 retries\n  Caused by: Failed to fetch: `x`",
    ],
)
def test_an_audit_without_a_network_passes_and_says_so(text: str) -> None:
    code, printed = audit(None, text, 1)
    assert (code, "not audited, because the advisories cannot be fetched" in printed) == (0, True)


def test_an_audit_that_fails_for_another_reason_fails() -> None:
    code, printed = audit(None, "ERROR: locked.txt has no hashes", 1)
    assert (code, "has no hashes" in printed) == (2, True)


def test_an_auditor_that_writes_no_report_fails() -> None:
    code, _ = audit(None)
    assert code == 2
