"""What the library reads from the answers of widely used SDKs."""

from types import SimpleNamespace
from typing import Any

import pytest

from evershell.agents.reply import Reply
from evershell.agents.usage import tokens_of


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("text", ("", "text", 0, 0)),
        (7, ("", "", 0, 0)),
        (
            {"model": "m", "content": "c", "usage": {"prompt_tokens": 3, "completion_tokens": 2}},
            ("m", "c", 3, 2),
        ),
        (
            SimpleNamespace(
                model="chat",
                choices=[SimpleNamespace(message=SimpleNamespace(content="said"))],
                usage=SimpleNamespace(prompt_tokens=3, completion_tokens=2),
            ),
            ("chat", "said", 3, 2),
        ),
        (
            SimpleNamespace(
                model="response",
                output_text="said",
                usage=SimpleNamespace(input_tokens=3, output_tokens=2),
            ),
            ("response", "said", 3, 2),
        ),
        (
            SimpleNamespace(
                model="message",
                content=[SimpleNamespace(type="text", text="sa"), {"type": "text", "text": "id"}],
                usage=SimpleNamespace(input_tokens=3, output_tokens=2),
            ),
            ("message", "said", 3, 2),
        ),
        (
            SimpleNamespace(
                content="said",
                model_name="chain",
                usage_metadata={"input_tokens": 3, "output_tokens": 2},
            ),
            ("chain", "said", 3, 2),
        ),
        (
            SimpleNamespace(usage=lambda: SimpleNamespace(input_tokens=3, output_tokens=2)),
            ("", "", 3, 2),
        ),
    ],
)
def test_what_common_sdks_answer_is_understood(answer: Any, expected: Any) -> None:
    reply = Reply()
    reply.take(answer)
    assert (reply.model, reply.content, reply.input_tokens, reply.output_tokens) == expected


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        # A message of Anthropic. Its input tokens do not include cached tokens.
        (
            SimpleNamespace(
                input_tokens=2,
                cache_read_input_tokens=3,
                cache_creation_input_tokens=4,
                cache_creation=SimpleNamespace(ephemeral_1h_input_tokens=1),
                output_tokens=5,
            ),
            {
                "input_tokens": 9,
                "cached_input_tokens": 3,
                "cache_write_tokens": 4,
                "cache_write_1h_tokens": 1,
                "output_tokens": 5,
            },
        ),
        # Usage in the form of LangChain: first with a count of the tokens that are cached for an
        # hour, then without this count.
        (
            {
                "input_tokens": 9,
                "input_token_details": {
                    "cache_read": 3,
                    "cache_creation": 0,
                    "ephemeral_5m_input_tokens": 3,
                    "ephemeral_1h_input_tokens": 1,
                },
            },
            {
                "input_tokens": 9,
                "cached_input_tokens": 3,
                "cache_write_tokens": 4,
                "cache_write_1h_tokens": 1,
            },
        ),
        (
            {"input_tokens": 9, "input_token_details": {"cache_creation": 4}},
            {"input_tokens": 9, "cache_write_tokens": 4},
        ),
        ({"input_tokens": -1, "output_tokens": 2.5, "cache_read_tokens": "3"}, {}),
        ({"prompt_tokens": 2, "prompt_tokens_details": "none"}, {"input_tokens": 2}),
    ],
)
def test_tokens_of_caches_are_a_part_of_the_input(usage: Any, expected: dict[str, int]) -> None:
    assert {kind: count for kind, count in tokens_of(usage).items() if count} == expected
