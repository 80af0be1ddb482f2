"""Text that the database can store, and the bounded output of a tool."""

import codecs

MAX_OUTPUT_BYTES = 64 * 1024
# Reserved for the notice of how much was cut.
_NOTICE_BYTES = 64
_HEAD_BYTES = MAX_OUTPUT_BYTES // 2 - _NOTICE_BYTES
_TAIL_BYTES = MAX_OUTPUT_BYTES // 2
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def storable(text: str) -> str:
    """Replaces NUL and lone surrogates, which PostgreSQL's jsonb and UTF-8 cannot hold."""
    return (
        text.encode("utf-8", "surrogatepass").decode("utf-8", "replace").replace("\0", _REPLACEMENT)
    )


class BoundedOutput:
    """Keeps the head and the tail of any amount of output, at most MAX_OUTPUT_BYTES of UTF-8."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._head = bytearray()
        self._tail = bytearray()
        # The number of bytes that were dropped from the front of the tail.
        self._dropped = 0

    def feed(self, data: bytes, *, final: bool = False) -> None:
        """Adds output. With `final`, an incomplete character at the end is replaced."""
        encoded = self._decoder.decode(data, final).replace("\0", _REPLACEMENT).encode()
        room = max(_HEAD_BYTES - len(self._head), 0)
        self._head += encoded[:room]
        self._tail += encoded[room:]
        # Until something has to be cut, the tail may also fill the space of the notice.
        excess = len(self._tail) - (MAX_OUTPUT_BYTES - _HEAD_BYTES)
        if excess > 0:
            del self._tail[:excess]
            self._dropped += excess

    def finish(self) -> tuple[str, int]:
        """The text, and how many bytes of it were cut. Call it once, after the last `feed`."""
        self.feed(b"", final=True)
        if not self._dropped:
            return (self._head + self._tail).decode(), 0
        # The cuts may split a character on each side. The rest of that character is cut too.
        head = self._head.decode("utf-8", "ignore")
        tail = self._tail[-_TAIL_BYTES:].decode("utf-8", "ignore")
        total = len(self._head) + len(self._tail) + self._dropped
        cut = total - len(head.encode()) - len(tail.encode())
        return f"{head}\n[{cut} bytes of output were cut here]\n{tail}", cut
