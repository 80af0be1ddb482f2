"""Text from others is printed with its control characters escaped."""

import pytest
from click.testing import CliRunner

from evershell.cli.main import main
from evershell.cli.terminal import printable

# Escape sequences with two introducers, control characters, invisible and bidirectional characters,
# line separators, a private character and half of a surrogate pair.
CONTROL_CHARACTERS = "\x1b[2J\x9b2J\x07\b\x7f\r\u202e\u2066\u200b\u2028\ufeff\ue000\ud800"


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("it has gone wrong", "it has gone wrong"),
        ("Ärger 🐚 停止\u3000理由\u00a0!", "Ärger 🐚 停止\u3000理由\u00a0!"),
        ("a\x9b31mb", r"a\x9b31mb"),
        ("user\u202etxt", r"user\u202etxt"),
        ("one\ntwo\tthree\r", r"one\ntwo\tthree\r"),
        ("\ud800", r"\ud800"),
    ],
)
def test_control_characters_are_escaped(text: str, escaped: str) -> None:
    assert printable(text) == escaped


def test_no_control_character_is_printed() -> None:
    # Above the first planes, kinds of characters come in long runs.
    everything = "".join(map(chr, (*range(0x3000), *range(0x3000, 0x110000, 61))))
    printed = printable(everything)
    assert all(character.isprintable() or character.isspace() for character in printed)
    # No line or paragraph separator is printed.
    assert len(printed.splitlines()) == 1


def unescaped(output: str) -> set[str]:
    return {
        character
        for character in output
        if character in CONTROL_CHARACTERS and not character.isprintable()
    }


@pytest.mark.parametrize(
    "arguments",
    [
        ["cancel", "ws_1", f"--{CONTROL_CHARACTERS}"],
        [CONTROL_CHARACTERS],
        ["cancel", "ws_1", "--wait", CONTROL_CHARACTERS],
    ],
)
def test_an_invalid_command_line_is_quoted_safely(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code, unescaped(result.output)) == (2, set())
    assert r"\x1b[2J" in result.output
