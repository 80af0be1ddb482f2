"""The log of a program: JSON lines on standard error. Logging never raises.

A line that cannot be written, for example on a full disk, is lost and counted. Every field has a
maximum length, and lines that anyone can cause are limited to a rate, so no caller can fill the
disk.
"""

import json
import logging
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, MutableMapping
from datetime import UTC, datetime
from typing import Any, Protocol

from evershell.core import credentials, trace

_FIELD_CHARACTERS = 1_000
_TRACEBACK_CHARACTERS = 8_000
# API keys, JWTs, and what follows the name of an authentication scheme. A credential may contain
# escape sequences, because libraries print bytes with them.
_CREDENTIAL = re.compile(
    rf"""((?<![a-z]){credentials.API_KEY}|\b{credentials.JWT}|\b(?i:bearer|basic)\s+)[^\s"']+"""
)
# The maximum size of an agent's log. Nothing else rotates this log: agents outlive the program that
# started them, and a sandbox hides the log's folder from them.
_AGENT_LOG_BYTES = 1 << 20
# The rate of each kind of line, and the size of a burst.
_LINES_PER_SECOND = 20
# The rate for each library. Its lines may have tracebacks, and strangers can cause them: gRPC logs
# header values that are not UTF-8.
_LIBRARY_LINES_PER_SECOND = 2

_Event = MutableMapping[str, Any]
_Clock = Callable[[], float]
_Line = Callable[[Any, str, _Event], str]
# Made once, because `json.dumps` with options makes a new encoder for each call.
_encode = json.JSONEncoder(default=repr).encode
_NUMBERS = (int, float)


class Log(Protocol):
    """Writes events with their fields."""

    def info(self, event: str, **fields: Any) -> Any: ...
    def warning(self, event: str, **fields: Any) -> Any: ...
    def error(self, event: str, **fields: Any) -> Any: ...
    def exception(self, event: str, **fields: Any) -> Any:
        """Writes an error, with the traceback of the exception that is being handled."""


class Sink:
    """Writes lines to a file descriptor, each with one system call. Counts lost lines."""

    def __init__(
        self, descriptor: int, notice: Callable[[int], str], max_bytes: int | None = None
    ) -> None:
        """`notice` formats the line that reports how many lines were lost.

        The notice is written when lines can be written again. A file that has reached `max_bytes`
        keeps only its second half.
        """
        self._descriptor = descriptor
        self._max_bytes = max_bytes
        self._notice = notice
        self._lock = threading.Lock()
        self._unreported = 0
        # Whether the last line was written only in part. The next one then starts with a newline.
        self._is_torn = False
        # Lines lost since the program started.
        self.lost_lines = 0

    def msg(self, line: str) -> None:
        """Writes the line, or counts it as lost."""
        with self._lock:
            if self._unreported and self._put(self._notice(self._unreported)):
                self._unreported = 0
            if not self._put(line):
                self.lost_lines += 1
                self._unreported += 1

    # structlog calls the method with the name of the level.
    debug = info = warning = error = critical = msg

    def _put(self, line: str) -> bool:
        data = (("\n" if self._is_torn else "") + line + "\n").encode(errors="replace")
        try:
            if self._max_bytes is not None:
                self._shorten(self._max_bytes)
            written = os.write(self._descriptor, data)
        except OSError:
            return False
        self._is_torn = written < len(data)
        return not self._is_torn

    def _shorten(self, max_bytes: int) -> None:
        # A pipe or a terminal has size 0, so nothing is removed.
        size = os.fstat(self._descriptor).st_size
        if size < max_bytes:
            return
        kept = max_bytes // 2
        end = os.pread(self._descriptor, kept, size - kept)
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, end[end.find(b"\n") + 1 :])


class Sampler:
    """Limits the lines of each kind to a rate, and counts the lines that are left out."""

    def __init__(self, per_second: int = _LINES_PER_SECOND, clock: _Clock = time.monotonic) -> None:
        self._per_second = per_second
        self._clock = clock
        self._kinds: dict[str, _Bucket] = {}

    def admit(self, kind: str) -> dict[str, int] | None:
        """Returns None if the line must be left out.

        Otherwise returns the fields to add to the line: the number of lines that were left out
        before it, if there are any. Kinds are never forgotten, so they must be a closed set.
        """
        now = self._clock()
        bucket = self._kinds.setdefault(kind, _Bucket(self._per_second, now))
        return bucket.take(self._per_second, now)


class _Bucket:
    def __init__(self, tokens: float, at: float) -> None:
        self._tokens = tokens
        self._at = at
        self._left_out = 0

    def take(self, per_second: int, now: float) -> dict[str, int] | None:
        self._tokens = min(per_second, self._tokens + (now - self._at) * per_second)
        self._at = now
        if self._tokens < 1:
            self._left_out += 1
            return None
        self._tokens -= 1
        left_out, self._left_out = self._left_out, 0
        return {"repeats_left_out": left_out} if left_out else {}


class PlainLog:
    """Implements Log without structlog, whose import takes 60 ms and 2 MB. For agents."""

    def __init__(self, line: _Line, sink: Sink) -> None:
        self._line = line
        self._sink = sink
        # Removes secrets from a line.
        self.redact: Callable[[str], str] = str

    def info(self, event: str, **fields: Any) -> None:
        self._write("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._write("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self._write("error", event, fields)

    def exception(self, event: str, **fields: Any) -> None:
        self._write("error", event, {"exc_info": True, **fields})

    def _write(self, level: str, event: str, fields: _Event) -> None:
        self._sink.msg(self.redact(self._line(None, level, {"event": event, **fields})))


def configure(program: str, level: str, **context: Any) -> Sink:
    """Sends the logs of this process and its libraries, and Python's warnings, to standard error.

    `context` has the fields that every line gets. Returns the sink, which counts lost lines.
    """
    # Imported here, because agents do not need it.
    import structlog

    line = _line({"program": program, **context})
    sink = _standard_error(line)
    structlog.configure(
        processors=[line],
        wrapper_class=structlog.make_filtering_bound_logger(level.lower()),
        logger_factory=lambda *_: sink,
        cache_logger_on_first_use=True,
    )
    _capture_libraries(structlog.get_logger())
    return sink


def configure_plain(program: str, **context: Any) -> PlainLog:
    """Like `configure`, at level INFO and without structlog. Returns the log of this process."""
    line = _line({"program": program, **context})
    log = PlainLog(line, _standard_error(line, _AGENT_LOG_BYTES))
    _capture_libraries(log)
    return log


def _standard_error(line: _Line, max_bytes: int | None = None) -> Sink:
    def notice(count: int) -> str:
        return line(None, "error", {"event": "log_lines_lost", "count": count})

    return Sink(2, notice, max_bytes)


def _capture_libraries(log: Log) -> None:
    logging.basicConfig(level=logging.WARNING, handlers=[_Libraries(log)], force=True)
    logging.captureWarnings(capture=True)


def cut(text: str, limit: int) -> str:
    """The text if it has at most `limit` characters.

    Otherwise its beginning and its end, with the number of characters that were cut out between
    them.
    """
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]} [{len(text) - 2 * half} characters cut] {text[-half:]}"


class _Libraries(logging.Handler):
    """Logs the messages of libraries, limited to a rate because callers can cause some of them."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log
        self._sampler = Sampler(_LIBRARY_LINES_PER_SECOND)

    def emit(self, record: logging.LogRecord) -> None:
        repeats = self._sampler.admit(record.name)
        if repeats is None:
            return
        write = self._log.error if record.levelno >= logging.ERROR else self._log.warning
        message = _redacted(_message(record))
        facts = {"logger": record.name, "message": message, "exc_info": record.exc_info}
        write("library_message", **facts, **repeats)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001 - the arguments do not fit the format, or cannot be printed
        return str(record.msg)


def _redacted(text: str) -> str:
    """The text without parts that look like credentials. gRPC, for example, logs header values."""
    return _CREDENTIAL.sub(r"\1[redacted]", text)


def _line(context: _Event) -> _Line:
    """Returns the function that formats an event as a line. It does not raise for any field."""

    def line(logger: Any, method: str, event: _Event) -> str:
        try:
            fields = {**context, **event, "level": method, "timestamp": _timestamp()}
            if trace_id := trace.current_id():
                fields.setdefault("trace_id", trace_id)
            if exc_info := fields.pop("exc_info", None):
                fields["exception"] = _redacted(_traceback(exc_info))
            for name, value in fields.items():
                kind = type(value)
                if (kind is str and len(value) <= _FIELD_CHARACTERS) or kind in _NUMBERS:
                    continue
                fields[name] = _cut_field(name, value)
            return _encode(fields)
        except Exception as error:  # noqa: BLE001 - an error of the log must not fail a call
            failure = {"event": "log_line_unprintable", "error": type(error).__name__}
            name = cut(str(event.get("event")), _FIELD_CHARACTERS)
            return _encode({**context, **failure, "level": "error", "of": name})

    return line


def _timestamp() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")[: -len("+00:00")] + "Z"


def _traceback(exc_info: Any) -> str:
    """Formats an exception.

    `exc_info` is the exception, or a tuple with it. Any other value stands for the exception that
    is being handled.
    """
    if isinstance(exc_info, BaseException):
        error: BaseException | None = exc_info
    else:
        error = exc_info[1] if isinstance(exc_info, tuple) else sys.exception()
    return "".join(traceback.format_exception(error)).rstrip("\n")


def _cut_field(name: str, value: Any) -> Any:
    if value is None or isinstance(value, int | float):
        return value
    limit = _TRACEBACK_CHARACTERS if name == "exception" else _FIELD_CHARACTERS
    if isinstance(value, str):
        return cut(value, limit)
    text = _encode(value)
    return value if len(text) <= limit else cut(text, limit)
