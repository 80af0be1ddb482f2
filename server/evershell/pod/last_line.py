"""Reads the last line of the log of an agent that has ended before it registered."""

import json

# How many characters of the agent's own reason, and of any other line, are quoted.
_MAX_REASON = 2_000
_MAX_LINE = 300


def reason_in(line: str) -> str:
    """The field `reason` of the line, if the line is JSON with this field; otherwise the line."""
    try:
        reason = json.loads(line)["reason"]
    except (ValueError, LookupError, TypeError, RecursionError):
        reason = None
    if not isinstance(reason, str):
        return line[:_MAX_LINE]
    # The database cannot store a NUL or half of a surrogate pair, which JSON can name.
    return reason[:_MAX_REASON].encode(errors="replace").decode().replace("\0", "?")
