"""Which lines of a log report a defect."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from tests.faults.long.chaos.sightings import defects
from tests.support.stack import Stack

TRACE = [
    "Traceback (most recent call last):",
    '  File "server.pyx.pxi", line 812, in _schedule_rpc_coro',
]
CANCELLED = [*TRACE, "asyncio.exceptions.CancelledError"]
BROKEN = [*TRACE, "OSError: [Errno 28] No space left on device"]


def found(tmp_path: Path, *lines: str) -> int:
    output = tmp_path / "state.output"
    output.write_text("\n".join(lines))
    return len(
        list(defects(cast(Stack, SimpleNamespace(output=output, state_dir=tmp_path / "state"))))
    )


@pytest.mark.parametrize("trace", [BROKEN, TRACE])
def test_a_traceback_is_a_defect_in_text_and_in_a_record(tmp_path: Path, trace: list[str]) -> None:
    assert found(tmp_path, *trace, "{}") == 1
    assert (
        found(tmp_path, json.dumps({"event": "library_message", "exception": "\n".join(trace)}))
        == 1
    )


def test_a_call_that_ended_before_it_had_begun_is_no_defect(tmp_path: Path) -> None:
    assert found(tmp_path, *CANCELLED, "{}") == 0
    assert (
        found(tmp_path, json.dumps({"event": "library_message", "exception": "\n".join(CANCELLED)}))
        == 0
    )


def test_a_record_that_was_cut_off_is_read_as_text(tmp_path: Path) -> None:
    assert found(tmp_path, '{"event": "unexpected_error", "exce') == 1
