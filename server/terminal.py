"""Prints untrusted text so that it cannot control the terminal."""

import unicodedata
from typing import Any

import click


def printable(text: str, *, block: bool = False) -> str:
    r"""The text with a visible escape (`\x1b`, `\u202e`) for every character that is invisible or controls the terminal.

    These are control and format characters (bidirectional overrides included), line separators, and unassigned code points.
    `block` keeps newlines and tabs, for texts of several lines.
    """
    if text.isprintable():
        return text
    kept = "\n\t" if block else ""
    return "".join(
        character if _is_visible(character) or character in kept else _escaped(character)
        for character in text
    )


def say(text: str, *, error: bool = False) -> None:
    """Prints a line to standard output, or to standard error."""
    click.echo(printable(text), err=error)


def _is_visible(character: str) -> bool:
    # Spaces other than U+0020 are not printable to Python. They are harmless, and common in some
    # languages.
    return character.isprintable() or unicodedata.category(character) == "Zs"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


class Commands(click.Group):
    """A group of commands whose error messages are printed safely, also if they quote untrusted
    text.
    """

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command. Raises what it raises."""
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            message = printable(error.format_message(), block=True)
            # Overrides the method, because some exceptions do not format `message`.
            error.format_message = lambda: message  # type: ignore[method-assign]
            raise
