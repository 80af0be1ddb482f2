"""Writes a history line by line, so that it is not lost if the process is killed."""

import itertools
import json
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Recorder:
    """Writes the calls of one process. Threads may share it."""

    def __init__(self, path: Path, since: float = 0.0) -> None:
        """Times are recorded relative to `since`, a reading of the monotonic clock."""
        # Each line is written at once, so no line is lost if the process is killed.
        self._file = path.open("a", buffering=1)
        self._serial = itertools.count(1)
        self._writing = threading.Lock()
        self._since = since

    def begin(self, caller: str, call: str, arguments: Mapping[str, Any], *, org: str = "") -> str:
        """Records that a call begins. Returns the id of the call in the history."""
        call_id = f"{os.getpid()}.{next(self._serial)}"
        begun = {"caller": caller, "org": org, "call": call, "arguments": arguments}
        self._write({"id": call_id} | begun)
        return call_id

    def answer(self, call_id: str, answer: Mapping[str, Any], request_id: str = "") -> None:
        """Records the answer to a call that succeeded, with the request id from the service."""
        self._write({"id": call_id, "request_id": request_id, "answer": answer})

    def fail(
        self, call_id: str, error: str, details: Mapping[str, Any], request_id: str = ""
    ) -> None:
        """Records an error. An error that is not a slug means that the service gave no answer."""
        failed = {"request_id": request_id, "error": error, "details": details}
        self._write({"id": call_id} | failed)

    def message(self, call_id: str, message: Mapping[str, Any]) -> None:
        """Records a message of a stream."""
        self._write({"id": call_id, "message": message})

    def deliver(self, webhook_id: str, event: Mapping[str, Any]) -> None:
        """Records an event that a webhook has received."""
        self._write({"webhook_id": webhook_id, "delivery": event})

    def close(self) -> None:
        self._file.close()

    def _write(self, line: dict[str, Any]) -> None:
        with self._writing:
            self._file.write(json.dumps(line | {"at": time.monotonic() - self._since}) + "\n")
