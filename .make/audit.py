"""Looks for known vulnerabilities in the packages of the lock files.

Usage: audit.py LOCK_FILE... -- AUDITOR...

AUDITOR is the command of pip-audit. Exits with 1 if a package has a known vulnerability, and with 2
if the audit failed. Exits with 0 if the advisories cannot be fetched, and says so, because a
developer may be offline.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

# How pip-audit, and uv, which installs it, say that the network cannot be used.
_OFFLINE = re.compile(
    r"could not connect|connection|dns error|name resolution|timed? ?out|max retries"
    r"|failed to fetch|error sending request|network",
    re.IGNORECASE,
)


def main(arguments: list[str]) -> int:
    """Audits each lock file. Returns the exit code."""
    separator = arguments.index("--")
    locks, auditor = arguments[:separator], arguments[separator + 1 :]
    return max(_audit(lock, auditor) for lock in locks)


def _audit(lock: str, auditor: list[str]) -> int:
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
        # Without a report nothing was audited, even if the exit code says success.
        text = report.read_text() if report.exists() else ""
    if text:
        return _judge(lock, text)
    if _OFFLINE.search(done.stderr):
        print(f"{lock}: not audited, because the advisories cannot be fetched")
        return 0
    print(f"{lock}: the audit failed with exit code {done.returncode}\n{done.stderr}")
    return 2


def _judge(lock: str, report: str) -> int:
    """Prints what was found in a lock file. Returns the exit code."""
    dependencies = json.loads(report)["dependencies"]
    skipped = [each["name"] for each in dependencies if "skip_reason" in each]
    vulnerabilities = [
        f"  {each['name']} {each['version']}: {vulnerability['id']}, "
        f"fixed in {', '.join(vulnerability['fix_versions']) or 'no version'}"
        for each in dependencies
        for vulnerability in each.get("vulns", [])
    ]
    audited = len(dependencies) - len(skipped)
    if not audited:
        # A mirror of the package index may have no advisories at all.
        print(f"{lock}: not audited, because the index has advisories for none of its packages")
        return 0
    print(f"{lock}: {audited} packages audited, {len(vulnerabilities)} known vulnerabilities")
    if skipped:
        print(f"  not audited: {', '.join(skipped)}")
    print("\n".join(vulnerabilities), end="\n" if vulnerabilities else "")
    return 1 if vulnerabilities else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
