"""The keys of a custom agent (AGENT_KEYS_FILE), which are kept out of events and logs."""

import json
import sys
import threading
from typing import TextIO

# The keys by name. All code in the agent's own process can read them.
keys: dict[str, str] = {}


# By form of a key, which is the key itself or the key with escapes: the text that replaces it.
_names: dict[str, str] = {}


def hide(given: dict[str, str]) -> None:
    """Adds keys, and keeps them out of what Python code of this process prints."""
    keys.update(given)
    for name, key in given.items():
        # In error texts and log lines, a key may be escaped.
        for form in filter(None, (key, repr(key)[1:-1])):
            _names.update(dict.fromkeys((json.dumps(form)[1:-1], form), f"[{name}]"))
    # The longest first, because a key may begin with another key.
    longest_first = sorted(_names.items(), key=lambda item: -len(item[0]))
    _names.clear()
    _names.update(longest_first)
    _redact(sys.stdout)
    _redact(sys.stderr)


def redacted(text: str) -> str:
    """The text, with each key that it contains replaced by the key's name."""
    for form, name in _names.items():
        text = text.replace(form, name)
    return text


def redacted_end(text: str, *, is_cut: bool = False) -> str:
    """The text, without keys and without parts of keys at its ends.

    The text is still being written, so its last characters may be the beginning of a key. With
    `is_cut`, the beginning of the text is missing, so its first characters may be the end of a key.
    """
    text, _ = without_parts(redacted(text), "")
    return without_parts("", text)[1] if is_cut else text


def without_parts(head: str, tail: str) -> tuple[str, str]:
    """The text before and after a cut, without the parts of a key that was cut in two.

    These parts must be removed here, because `redacted` finds only whole keys.
    """
    for form in _names:
        tail = tail[_common_end(form, tail) :]
    return _without_beginning(head), tail


def _without_beginning(text: str) -> str:
    """The text. If it ends with the beginning of a key, this part is removed."""
    longest = max((_common_beginning(form, text) for form in _names), default=0)
    return text[: len(text) - longest]


# Keys may have thousands of characters, and commands and models wait for the next two functions. To
# be fast, each function searches for one character, and compares texts only where it occurs.


def _common_end(form: str, text: str) -> int:
    """The length of the longest prefix of `text` that is a proper suffix of `form`."""
    start = 0
    while text and (start := form.find(text[0], start + 1)) > 0:
        if text.startswith(form[start:]):
            return len(form) - start
    return 0


def _common_beginning(form: str, text: str) -> int:
    """The length of the longest suffix of `text` that is a proper prefix of `form`."""
    end = len(form) - 1
    while text and (end := form.rfind(text[-1], 0, end)) >= 0:
        if text.endswith(form[: end + 1]):
            return end + 1
    return 0


def _redact(stream: TextIO) -> None:
    """Keeps keys out of what the stream prints, even keys that are written in parts.

    The stream object is not replaced, because handlers of `logging` may refer to it.
    """
    write, lock = stream.write, threading.RLock()
    # A possible beginning of a key. It is printed when the next text shows that it is not a key.
    held = ""

    def write_redacted(text: str) -> int:
        nonlocal held
        with lock:
            whole = redacted(held + text)
            shown = _without_beginning(whole)
            held = whole[len(shown) :]
            write(shown)
        return len(text)

    stream.write = write_redacted  # type: ignore[method-assign]
