import time

import pytest

from tests.unit.auth.fake_keys import FakeTimer


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeTimer:
    """The clock that measures the age of a set of keys."""
    clock = FakeTimer()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock
