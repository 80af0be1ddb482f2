"""What others wrote is printed, and steers no terminal."""

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from server import __main__, terminal
from server.cli import demo, demo_stack
from server.cli.demo import Seen, Walk
from server.terminal import printable

# Clears the screen, by two introducers; rings; goes back; hides; turns what follows around; is half
# a character.
STEERING = "\x1b[2J\x9b2J\x07\b\x7f\r\u202e\u2066\u200b\u2028\ufeff\ue000\ud800"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("it has gone wrong", "it has gone wrong"),
        ("Ärger 🐚 停止\u3000理由\u00a0!", "Ärger 🐚 停止\u3000理由\u00a0!"),
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("a\x9b31mb", r"a\x9b31mb"),
        ("user\u202etxt", r"user\u202etxt"),
        ("\x00\x07\x08\x7f", r"\x00\x07\x08\x7f"),
        ("one\ntwo\tthree\r", r"one\ntwo\tthree\r"),
        ("\U000e0041", r"\U000e0041"),
        ("\ud800", r"\ud800"),
    ],
)
def test_what_would_steer_is_seen_instead(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_block_keeps_its_lines() -> None:
    assert printable("one\n\ttwo\x1b[2J\r\n", block=True) == "one\n\ttwo\\x1b[2J\\r\n"


def test_no_character_that_steers_is_left() -> None:
    everything = "".join(map(chr, range(0x110000)))
    left = printable(everything)
    assert all(character.isprintable() or character.isspace() for character in left)
    # No line or paragraph ends, no control character.
    assert len(left.splitlines()) == 1


def steers(output: str) -> set[str]:
    return {
        character for character in output if character in STEERING and not character.isprintable()
    }


@pytest.mark.parametrize(
    "arguments",
    [["cancel", "ws_1", f"--{STEERING}"], [STEERING], ["cancel", "ws_1", "--wait", STEERING]],
)
def test_a_command_line_that_is_not_valid_is_quoted_safely(arguments: list[str]) -> None:
    result = CliRunner().invoke(__main__.main, arguments)
    assert (result.exit_code, steers(result.output)) == (2, set())
    assert r"\x1b[2J" in result.output


def test_a_failure_that_quotes_others_is_printed_safely(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_: Path) -> None:
        demo_stack.fail(f"the answer was:\n{STEERING}")

    monkeypatch.setattr(demo, "find_stack", failing)
    result = CliRunner().invoke(__main__.main, ["demo"])
    assert (result.exit_code, steers(result.output)) == (1, set())
    assert result.output.startswith("Error: The answer was:\n\\x1b[2J\\x9b2J")


@pytest.mark.parametrize(
    "event",
    [
        {
            "type": "task_cancel_requested",
            "task_cancel_requested": {"cancel": {"requested_by": STEERING, "reason": STEERING}},
        },
        {
            "type": "iteration_completed",
            "iteration_completed": {
                "number": 1,
                "tool_call": {
                    "duration_ms": STEERING,
                    "result": {"status": STEERING, "exit_code": 0},
                },
            },
        },
        {
            "type": "task_completed",
            "task_completed": {"status": STEERING, "forced": False, "iterations": STEERING},
        },
        {"type": STEERING, STEERING: {"status": "", "forced": False, "iterations": 0}},
    ],
)
def test_the_demo_prints_events_safely(
    event: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    seen = Seen(event, at=0.0)
    demo._print_event(Walk("task_1", (STEERING,), [seen]), seen)
    # The colours are the demo's own; where nobody looks, there are none.
    output = click.unstyle(capsys.readouterr().out.removesuffix("\n"))
    assert steers(output) == set()
    assert r"\u202e" in output


def test_say_prints_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.say("out\nside")
    terminal.say("in\x1b[2Jside", error=True)
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("out\\nside\n", "in\\x1b[2Jside\n")
