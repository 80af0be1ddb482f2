"""Prints what others wrote without letting it steer the terminal."""

import unicodedata
from typing import Any

import click


def printable(text: str, *, block: bool = False) -> str:
    r"""The text with a visible escape (`\x1b`, `\u202e`) for every character that shows nothing, or moves or colours what is shown.

    Those are control and format characters, bidirectional overrides among them, separators of lines, and what Unicode has not
    assigned. `block`: newlines and tabs stay, where a text of several lines is expected.
    """
    if text.isprintable():
        return text
    kept = "\n\t" if block else ""
    return "".join(character if _is_visible(character) or character in kept else _escaped(character) for character in text)


def say(text: str, *, error: bool = False) -> None:
    """Prints a line to standard output, or to standard error."""
    click.echo(printable(text), err=error)


def _is_visible(character: str) -> bool:
    # Spaces other than U+0020 are not `printable` to Python, but harmless, and common in some languages.
    return character.isprintable() or unicodedata.category(character) == "Zs"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


class Commands(click.Group):
    """A group of commands whose failures are printed safely, whatever text of others they quote."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command. Raises what it raises."""
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            message = printable(error.format_message(), block=True)
            # Some kinds build their text from other fields than `message`.
            error.format_message = lambda: message  # type: ignore[method-assign]
            raise
