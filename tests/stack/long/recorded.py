"""A caller that records its calls."""

from collections.abc import Iterator
from typing import Any

from evershell.histories.recorder import Recorder
from tests.stack.long.load import Caller


class Recorded:
    """Passes calls on to another caller, and records them."""

    def __init__(self, name: str, caller: Caller, recorder: Recorder) -> None:
        self._name, self._caller, self._recorder = name, caller, recorder

    def call(self, rpc: str, **fields: Any) -> dict[str, Any]:
        call_id = self._recorder.begin(self._name, rpc, fields)
        try:
            answer = self._caller.call(rpc, **fields)
        except Exception as error:
            # Records no slug, so the call counts as a call without an answer, which may have taken
            # effect.
            self._recorder.fail(call_id, repr(error), {})
            raise
        self._recorder.answer(call_id, answer)
        return answer

    def watch(self, workspace_id: str, after: int) -> Iterator[dict[str, Any]]:
        fields = {"workspace_id": workspace_id, "after": after}
        call_id = self._recorder.begin(self._name, "WatchEvents", fields)
        for message in self._caller.watch(workspace_id, after):
            if "event" in message:
                self._recorder.message(call_id, message)
            yield message
        self._recorder.answer(call_id, {})
