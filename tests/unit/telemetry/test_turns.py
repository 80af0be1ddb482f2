"""How the turns of an event loop are counted."""

import os

import pytest

from evershell.telemetry import turns
from tests.support.waiting import eventually_async


async def test_turns_are_counted_for_the_supervisor_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "TURN_SECONDS", 0.001)
    count = turns.TurnCount()
    assert count.read() == 0
    monkeypatch.setenv(turns.VARIABLE, str(count.descriptor))
    async with turns.counted():
        # A child of this process gets neither the variable nor the file.
        assert turns.VARIABLE not in os.environ
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(count.descriptor)
        await eventually_async(lambda: count.read() >= 3)


async def test_another_file_is_not_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a copied environment, the variable may name the descriptor of another file."""
    descriptor = os.memfd_create("other")
    try:
        os.ftruncate(descriptor, 8)
        for number in (str(descriptor), "999", ""):
            monkeypatch.setenv(turns.VARIABLE, number)
            async with turns.counted():
                pass
        assert os.pread(descriptor, 8, 0) == bytes(8)
    finally:
        os.close(descriptor)
