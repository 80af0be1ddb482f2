"""Fails the test run if a stack has left a credential where none is meant to be."""

import pytest

from tests.support.secrets import leaks, searched


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if leaks and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if leaks:
        terminalreporter.section("credentials in files", red=True)
        for line in leaks:
            terminalreporter.line(line, red=True)
    elif searched:
        terminalreporter.line(f"{len(searched)} stops of stacks searched: no credential")
