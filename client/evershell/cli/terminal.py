"""Prints untrusted text so that it cannot control the terminal."""

import os
import shutil
import sys
import textwrap
import unicodedata
from contextlib import suppress
from typing import Any, TextIO

import click

# Text is not wrapped if fewer characters than this fit after the indent.
_LEAST_WIDTH = 20


def printable(text: str, *, block: bool = False) -> str:
    r"""The text with an escape (`\x1b`, `\u202e`) in place of each character that is not visible.

    Among these are control and format characters (including bidirectional overrides), line
    separators, and unassigned code points. `block` keeps newlines and tabs, for texts of several
    lines.
    """
    if text.isprintable():
        return text
    kept = "\n\t" if block else ""
    return "".join(
        character if _is_visible(character) or character in kept else _escaped(character)
        for character in text
    )


class OutputError(click.ClickException):
    """Standard output or standard error cannot be written, for example to a full disk."""


def say(text: str, *, error: bool = False) -> None:
    """Prints a line to standard output, or to standard error. Raises what `say_lines` raises."""
    say_lines(printable(text), error=error)


def say_lines(text: str, *, error: bool = False) -> None:
    """Prints a text that is already safe to print. Raises OutputError and BrokenPipeError."""
    try:
        click.echo(text, err=error, color=_color())
    except BrokenPipeError:
        # The reader has closed the pipe. The command ends without a message.
        _discard(sys.stderr if error else sys.stdout)
        raise
    except OSError as failure:
        name = "Standard error" if error else "Standard output"
        raise OutputError(f"{name} cannot be written: {failure.strerror}.") from failure


def width(*, error: bool = False) -> int | None:
    """The number of columns of the terminal; None if the stream is not a terminal."""
    is_terminal = (sys.stderr if error else sys.stdout).isatty()
    return shutil.get_terminal_size().columns if is_terminal else None


def wrapped(text: str, indent: int = 0, *, error: bool = False) -> str:
    """The text with line breaks between words, if it is wider than the terminal.

    All lines except the first begin with the indent. The caller must indent the first line.
    """
    columns = width(error=error)
    if columns is None or indent + _LEAST_WIDTH > columns:
        return text
    lines = textwrap.wrap(
        text,
        columns - indent,
        break_long_words=False,
        break_on_hyphens=False,
        # Keeps the white space of untrusted text.
        replace_whitespace=False,
    )
    return f"\n{' ' * indent}".join(lines) or text


def _color() -> bool | None:
    """False if the user wants no colours; None to use colours only on terminals."""
    is_plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    return False if is_plain else None


def _discard(stream: TextIO) -> None:
    """Makes Python discard buffered output. Otherwise, writing it would fail at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    with suppress(OSError):
        os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _is_visible(character: str) -> bool:
    # To Python, spaces other than U+0020 are not printable. They are harmless, and common in some
    # languages.
    return character.isprintable() or unicodedata.category(character) == "Zs"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


class Commands(click.Group):
    """A group of commands that escapes untrusted text in the error messages of its commands."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            message = printable(error.format_message(), block=True)
            # Replaces the method, because some exceptions make their text from other attributes
            # than `error.message`.
            error.format_message = lambda: message  # type: ignore[method-assign]
            raise
