"""Durations of options."""

import pytest

from evershell.cli.duration import DURATION
from tests.unit.cli.fake_client import FakeClient, run


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("2.5", 2.5), ("500ms", 0.5), ("10s", 10), ("1m", 60)]
)
def test_a_duration_is_parsed(text: str, seconds: float) -> None:
    assert DURATION.convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1s", "1w", "1 s", "nan", "1e3"])
def test_an_invalid_duration_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    fake = FakeClient()
    result = run(monkeypatch, fake, "cancel", "ws_1", "--wait", text)
    assert (result.exit_code, fake.calls) == (2, [])
    assert "write 500ms, 10s, 1m, 1h or 30d" in result.stderr
