"""In CI, makes skipped tests fail, because CI installs every tool."""

import os
from collections.abc import Generator
from typing import Any

import pytest

IN_CI = os.environ.get("CI") == "true"
# A test may be skipped even in CI if the reason contains this text, which says that the case cannot
# exist.
NOT_APPLICABLE = "not applicable: "


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, pytest.TestReport]:
    report: pytest.TestReport = yield
    if IN_CI and report.skipped and NOT_APPLICABLE not in str(report.longrepr):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
    return report
