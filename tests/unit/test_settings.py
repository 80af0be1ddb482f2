"""What settings mean together, and which values they refuse."""

from evershell.app.settings import Settings
from evershell.app.worker import _rate_limits


def test_no_calls_a_second_is_no_limit() -> None:
    assert _rate_limits(Settings(rate_limit_per_second=0)) is None
    assert _rate_limits(Settings(rate_limit_per_second=2)) is not None
