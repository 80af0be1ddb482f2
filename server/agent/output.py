"""Text as it can be stored, and a tool's output within bounds."""

import codecs

MAX_OUTPUT_BYTES = 64 * 1024
# What a line that says what was cut may take.
_NOTICE_BYTES = 64
_HEAD_BYTES = MAX_OUTPUT_BYTES // 2 - _NOTICE_BYTES
_TAIL_BYTES = MAX_OUTPUT_BYTES // 2
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def storable(text: str) -> str:
    """The text with a replacement character for all that PostgreSQL's jsonb or UTF-8 cannot hold:
    NUL and lone surrogates.
    """
    return (
        text.encode("utf-8", "surrogatepass").decode("utf-8", "replace").replace("\0", _REPLACEMENT)
    )


class BoundedOutput:
    """Takes any amount of output and keeps its head and its tail, together at most MAX_OUTPUT_BYTES
    of UTF-8.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._head = bytearray()
        self._tail = bytearray()
        # Bytes that were dropped from the front of the tail.
        self._dropped = 0

    def feed(self, data: bytes, *, final: bool = False) -> None:
        """Takes what was read; `final` when nothing follows, so that a character cut in half is
        shown as such.
        """
        encoded = self._decoder.decode(data, final).replace("\0", _REPLACEMENT).encode()
        room = max(_HEAD_BYTES - len(self._head), 0)
        self._head += encoded[:room]
        self._tail += encoded[room:]
        # Until it is known whether anything is cut, the tail may also hold what the notice would
        # take.
        excess = len(self._tail) - (MAX_OUTPUT_BYTES - _HEAD_BYTES)
        if excess > 0:
            del self._tail[:excess]
            self._dropped += excess

    def finish(self) -> tuple[str, int]:
        """The text, and how many bytes of it were cut. Nothing can be fed afterwards."""
        self.feed(b"", final=True)
        if not self._dropped:
            return (self._head + self._tail).decode(), 0
        # What is left of characters that the two cuts went through is dropped with the rest.
        head = self._head.decode("utf-8", "ignore")
        tail = self._tail[-_TAIL_BYTES:].decode("utf-8", "ignore")
        total = len(self._head) + len(self._tail) + self._dropped
        cut = total - len(head.encode()) - len(tail.encode())
        return f"{head}\n[{cut} bytes of output were cut here]\n{tail}", cut
