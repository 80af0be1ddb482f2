"""Parts that `make gen` writes in files that are otherwise written by hand.

A line with BEGIN and a line with END enclose such a part.
"""

import re

BEGIN, END = "begin: written by `make gen`", "end: written by `make gen`"
_PART = re.compile(rf"(^[^\n]*{BEGIN}[^\n]*\n)(.*?)(^[^\n]*{END})", re.MULTILINE | re.DOTALL)


def replaced(text: str, *parts: str) -> str:
    """The text with these contents in its parts, in order.

    Raises ValueError if the number of parts in the text is not the number of contents.
    """
    left = list(parts)
    new, count = _PART.subn(lambda match: match[1] + (left.pop(0) if left else "") + match[3], text)
    if count != len(parts):
        raise ValueError(f"{count} parts have the lines {BEGIN!r} and {END!r}, not {len(parts)}")
    return new
