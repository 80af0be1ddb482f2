"""Reads the tokens that an SDK or an endpoint reports for a model call."""

from typing import Any

from evershell.core.task import MAX_CALL_TOKENS, TOKENS

# By kind of token: the fields that may contain the count. The first field that exists is used. They
# are the fields of OpenAI's chat completions and responses, and of the messages of Anthropic,
# LangChain and Pydantic AI.
_PLACES = {
    "input_tokens": ("input_tokens", "prompt_tokens"),
    "output_tokens": ("output_tokens", "completion_tokens"),
    "cached_input_tokens": (
        "prompt_tokens_details.cached_tokens",
        "input_tokens_details.cached_tokens",
        "cache_read_input_tokens",
        "input_token_details.cache_read",
        "cache_read_tokens",
    ),
    "cache_write_tokens": (
        "prompt_tokens_details.cache_write_tokens",
        "input_tokens_details.cache_write_tokens",
        "cache_creation_input_tokens",
        "input_token_details.cache_creation",
        "cache_write_tokens",
    ),
    "cache_write_1h_tokens": (
        "cache_creation.ephemeral_1h_input_tokens",
        "input_token_details.ephemeral_1h_input_tokens",
        "cache_write_1h_tokens",
    ),
    "input_audio_tokens": (
        "prompt_tokens_details.audio_tokens",
        "input_tokens_details.audio_tokens",
        "input_token_details.audio",
        "input_audio_tokens",
    ),
    "reasoning_tokens": (
        "completion_tokens_details.reasoning_tokens",
        "output_tokens_details.reasoning_tokens",
        "output_tokens_details.thinking_tokens",
        "output_token_details.reasoning",
        "output_reasoning_tokens",
    ),
    "output_audio_tokens": (
        "completion_tokens_details.audio_tokens",
        "output_tokens_details.audio_tokens",
        "output_token_details.audio",
        "output_audio_tokens",
    ),
}
# Anthropic does not include these in `input_tokens`, so they are added.
_BESIDE_INPUT = ("cache_read_input_tokens", "cache_creation_input_tokens")
# LangChain does not include these in `cache_creation`, so they are added.
_BESIDE_CACHE_WRITE = (
    "input_token_details.ephemeral_5m_input_tokens",
    "input_token_details.ephemeral_1h_input_tokens",
)


def tokens_of(usage: object) -> dict[str, int]:
    """The count of each kind of token in TOKENS. A missing or invalid count is 0."""
    counts = {kind: _count(usage, *_PLACES[kind]) for kind in TOKENS}
    counts["input_tokens"] += sum(_count(usage, place) for place in _BESIDE_INPUT)
    counts["cache_write_tokens"] += sum(_count(usage, place) for place in _BESIDE_CACHE_WRITE)
    return counts


def field_of(value: object, *names: str) -> Any:
    """The first of these fields of an object or a dict that is not None; None if there is none."""
    for name in names:
        found = value.get(name) if isinstance(value, dict) else getattr(value, name, None)
        if found is not None:
            return found
    return None


def _count(usage: object, *places: str) -> int:
    for place in places:
        found: Any = usage
        for name in place.split("."):
            found = field_of(found, name)
        if found is not None:
            return found if isinstance(found, int) and 0 <= found <= MAX_CALL_TOKENS else 0
    return 0
