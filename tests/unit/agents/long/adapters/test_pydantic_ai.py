"""Agents of Pydantic AI that have another structure than the agent in frameworks.py."""

import importlib.util
from typing import Any

import pytest

from evershell.core.task import TaskStatus
from tests.unit.agents.long.adapters.frameworks import need
from tests.unit.agents.loop_world import Run

pydantic_ai: Any = (
    importlib.import_module("pydantic_ai") if importlib.util.find_spec("pydantic_ai") else None
)


@pytest.fixture(autouse=True)
def _needs_the_framework() -> None:
    need("pydantic_ai")


def model(text: str | None = None) -> Any:
    """A model that calls each tool once and then answers with the text."""
    from pydantic_ai.models.test import TestModel

    return TestModel(custom_output_text=text)


def run_of(own: Any, **options: Any) -> Run:
    from evershell.agents.adapters import pydantic_ai as adapter

    return Run(adapter.agent(own, conversation=None, **options))


async def test_a_tool_that_needs_an_approval_fails_the_task() -> None:
    own = pydantic_ai.Agent(
        model(),
        output_type=[str, pydantic_ai.DeferredToolRequests],
    )

    @own.tool_plain(requires_approval=True)
    async def delete(path: str) -> str:
        return f"deleted {path}"

    ending = await run_of(own).end()
    assert ending.status is TaskStatus.FAILED
    assert ending.reason == "A tool waits for an answer, which nobody can give: delete."


async def test_an_agent_that_a_tool_runs_is_part_of_the_tool_call() -> None:
    inner = pydantic_ai.Agent(model("inner"))
    own = pydantic_ai.Agent(model("outer"))

    @own.tool_plain
    async def delegate() -> str:
        return str((await inner.run("do it")).output)

    run = run_of(own)
    ending = await run.end()
    assert (ending.status, ending.result) == (TaskStatus.COMPLETED, "outer")
    first, second = run.iterations
    assert first["tool_call"]["result"]["output"] == "inner"
    assert "tool_call" not in second


async def test_an_output_that_is_refused_is_another_iteration() -> None:
    own = pydantic_ai.Agent(model("said"))
    asked = []

    @own.output_validator
    async def check(text: str) -> str:
        asked.append(text)
        if len(asked) == 1:
            raise pydantic_ai.ModelRetry("again")
        return text

    run = run_of(own)
    ending = await run.end()
    assert (ending.result, len(run.iterations)) == ("said", 2)
