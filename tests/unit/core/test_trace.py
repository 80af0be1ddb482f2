"""W3C trace contexts are parsed and forwarded."""

import pytest

from evershell.core.trace import TraceContext

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
VALID = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    ("traceparent", "flags"),
    [
        (VALID, "01"),
        (f" 00-{TRACE}-{SPAN}-00 ", "00"),
        (f"cc-{TRACE}-{SPAN}-01", "01"),
        (f"cc-{TRACE}-{SPAN}-01-what-a-later-version-adds", "01"),
    ],
)
def test_a_valid_header_is_parsed(traceparent: str, flags: str) -> None:
    assert TraceContext.parse(traceparent) == TraceContext(TRACE, SPAN, flags)


@pytest.mark.parametrize(
    "traceparent",
    [
        None,
        "",
        "nonsense",
        VALID.upper(),
        VALID + "-more",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-0g",
        f"{VALID}, {VALID}",
        "٠٠-" + VALID[3:],
    ],
)
def test_an_invalid_header_is_no_trace(traceparent: str | None) -> None:
    assert TraceContext.parse(traceparent) is None
