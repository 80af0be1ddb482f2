"""Each adapter can be imported even where its framework is not installed."""

import pkgutil
import subprocess
import sys

import pytest

from evershell.agents import adapters

FRAMEWORKS = {"agents", "claude_agent_sdk", "langchain_core", "langgraph", "pydantic_ai"}


@pytest.mark.parametrize("name", [each.name for each in pkgutil.iter_modules(adapters.__path__)])
def test_an_adapter_imports_its_framework_only_for_an_agent(name: str) -> None:
    program = f"import sys, evershell.agents.adapters.{name}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], check=True, capture_output=True, text=True
    )
    assert not FRAMEWORKS.intersection(done.stdout.split())
