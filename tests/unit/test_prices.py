"""The prices of the release, and the prices in PRICES_FILE."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import genai_prices
import pytest

from evershell.app.prices import model_without_price, read_prices
from evershell.core.errors import OperatorError
from evershell.core.prices import PriceList

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
# A call with each kind of tokens, a call with audio, and a small call.
CALLS = (
    {
        "input_tokens": 900_000,
        "output_tokens": 7_000,
        "cached_input_tokens": 300_000,
        "cache_write_tokens": 5_003,
        "cache_write_1h_tokens": 1_001,
        "reasoning_tokens": 999,
    },
    {"input_tokens": 900, "output_tokens": 70, "input_audio_tokens": 33, "output_audio_tokens": 7},
    {"input_tokens": 1, "output_tokens": 1},
)
# The names that the package genai-prices uses.
THEIRS = {
    "cached_input_tokens": "cache_read_tokens",
    "reasoning_tokens": "output_reasoning_tokens",
}


def names_of(clause: Any) -> Iterator[str]:
    """Yields names of models to which the clause may apply."""
    kind, wanted = clause
    if kind in ("or", "and"):
        for each in wanted:
            yield from names_of(each)
    elif kind != "regex":
        yield wanted
        yield f"{wanted}-1"


def theirs(name: str, call: dict[str, int], at: datetime) -> int | None:
    usage = genai_prices.Usage(**{THEIRS.get(key, key): value for key, value in call.items()})
    try:
        found = genai_prices.calc_price(usage, name, genai_request_timestamp=at)
    except LookupError:
        return None
    prices = vars(found.model_price)
    return round(found.total_price * 10**9) if prices.get("input_mtok") is not None else None


def test_the_release_has_the_prices_of_genai_prices() -> None:
    prices = read_prices(None)
    names = {
        name
        for provider in prices.providers
        for model in provider.models
        for name in names_of(model.clause)
    }
    assert len(names) > 500
    priced = 0
    for name in sorted(names):
        for call in CALLS:
            for at in (NOW, NOW - timedelta(days=700, hours=10)):
                expected = theirs(name, call, at)
                found = prices.cost({"model": name, **call}, at)
                if expected is None or found is None:
                    assert found is expected, (name, call)
                else:
                    # The package rounds halves to even, so the results may differ by 1.
                    assert abs(found - expected) <= 1, (name, call, at)
                    priced += 1
    assert priced > 1000


def of_file(tmp_path: Path, content: str) -> PriceList:
    file = tmp_path / "prices.json"
    file.write_text(content)
    return read_prices(file)


def test_a_file_replaces_and_adds_prices(tmp_path: Path) -> None:
    own = {"My-Model": {"input": 0.5, "output": 2, "cached_input": 0.000001}, "gpt-4o": None}
    own["gpt-4o"] = {"input": 0, "output": 1000}
    prices = of_file(tmp_path, json.dumps(own))
    call = {"input_tokens": 3_000_000, "output_tokens": 1, "cached_input_tokens": 1_000_000}
    assert prices.cost({"model": "my-model", **call}, NOW) == 10**9 + 1000 + 2000
    assert prices.cost({"model": "gpt-4o", **call}, NOW) == 10**6
    assert prices.cost({"model": "gpt-4o-mini", **call}, NOW) == read_prices(None).cost(
        {"model": "gpt-4o-mini", **call}, NOW
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "is not JSON"),
        ("[]", "must be a JSON object"),
        ('{"m": 3}', "m must have an object"),
        ('{"m": {"input": 1}}', "m has no price `output`"),
        ('{"m": {"input": 1, "output": 1, "inputs": 1}}', "m has the unknown price `inputs`"),
        ('{"m": {"input": -1, "output": 1}}', "m.input must be USD"),
        ('{"m": {"input": 1000.1, "output": 1}}', "m.input must be USD"),
        ('{"m": {"input": 1, "output": 0.0000001}}', "m.output must be USD"),
        ('{"m": {"input": 1, "output": NaN}}', "m.output must be USD"),
        ('{"m": {"input": 1, "output": 1e400}}', "m.output must be USD"),
        ('{"m": {"input": 1, "output": 1e9999999999999999999}}', "too large an exponent"),
        ('{"m": {"input": true, "output": 1}}', "m.input must be USD"),
        ('{"m": {"input": "1", "output": 1}}', "m.input must be USD"),
    ],
)
def test_a_file_that_is_not_valid_is_refused(tmp_path: Path, content: str, problem: str) -> None:
    with pytest.raises(OperatorError, match=r"^PRICES_FILE .*prices\.json") as raised:
        of_file(tmp_path, content)
    assert problem in str(raised.value)


def test_a_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="cannot be read: No such file"):
        read_prices(tmp_path / "none.json")


def test_only_the_configured_model_is_known_at_submission() -> None:
    prices = read_prices(None)
    assert model_without_price(prices, "scripted", "") == ""
    assert model_without_price(prices, "openai:gpt-4o", "") == ""
    assert model_without_price(prices, "openai:my-model", "") == "my-model"
    assert model_without_price(prices, "openai:my-model", "python my_agent.py") == ""
