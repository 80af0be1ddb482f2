"""In CI, a test fails if it is skipped for lack of a tool, because CI installs every tool."""

import os
from collections.abc import Generator
from typing import Any

import pytest

IN_CI = os.environ.get("CI") == "true"
# A case that does not exist for some parameters is skipped with a reason that begins with this.
NOT_APPLICABLE = "not applicable: "


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, pytest.TestReport]:
    report: pytest.TestReport = yield
    if IN_CI and report.skipped and NOT_APPLICABLE not in str(report.longrepr):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
    return report
