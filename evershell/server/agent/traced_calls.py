"""A model and a tool whose calls have spans."""

import asyncio

from evershell.server.agent.model import History, Model, ModelReply, PartialReply
from evershell.server.agent.spans import Spans
from evershell.server.agent.tools import Tool, ToolCall, ToolResult
from evershell.server.core import trace


class TracedModel:
    """Implements Model."""

    def __init__(self, model: Model, spans: Spans) -> None:
        self._model = model
        self._spans = spans

    @property
    def name(self) -> str:
        return self._model.name

    async def next(self, history: History, partial: PartialReply) -> ModelReply:
        with self._spans.within("model_call", trace.current(), model=self._model.name):
            return await self._model.next(history, partial)


class TracedTool:
    """Implements Tool."""

    def __init__(self, tool: Tool, spans: Spans) -> None:
        self._tool = tool
        self._spans = spans

    async def run(self, call: ToolCall, interrupt: asyncio.Event) -> ToolResult:
        with self._spans.within("tool_call", trace.current()) as span:
            result = await self._tool.run(call, interrupt)
            if span is not None:
                span.attributes["evershell.tool_status"] = str(result.status)
            return result
