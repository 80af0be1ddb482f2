"""Reads the prices of models from the release and from PRICES_FILE."""

import json
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from evershell.core.errors import OperatorError
from evershell.core.prices import PriceList, Prices, Provider

# Maps the fields of a model in the file to the fields of a model call (core/prices.py).
_KINDS = {
    "input": "input_tokens",
    "output": "output_tokens",
    "cached_input": "cached_input_tokens",
    "cache_write": "cache_write_tokens",
    "cache_write_1h": "cache_write_1h_tokens",
    "input_audio": "input_audio_tokens",
    "reasoning": "reasoning_tokens",
    "output_audio": "output_audio_tokens",
}
_REQUIRED = {"input", "output"}
# The highest price, in USD for a million tokens. With it, the cost of a task fits into 64 bits.
_MAX_PRICE = 1000
_PICO_PER_TOKEN = 1_000_000
# The scripted model of the built-in agent costs nothing.
_FREE = {"scripted": Prices({"input_tokens": [(0, 0)], "output_tokens": [(0, 0)]})}


class _Release(msgspec.Struct):
    providers: list[Provider]


def read_prices(file: Path | None) -> PriceList:
    """The prices of the release. Prices in the file override them. Raises OperatorError."""
    content = resources.files("evershell.app").joinpath("prices.json").read_bytes()
    release = msgspec.json.decode(content, type=_Release)
    return PriceList(release.providers, _FREE | (_own(file) if file is not None else {}))


def model_without_price(prices: PriceList, model: str, agent_command: str) -> str:
    """The configured model if it has no price; empty if it has one, or if the agent is custom."""
    name = model.removeprefix("openai:")
    return "" if agent_command or prices.has(name) else name


def _own(file: Path) -> dict[str, Prices]:
    try:
        found = json.loads(file.read_bytes(), parse_float=Decimal)
    except OSError as error:
        raise OperatorError(f"PRICES_FILE {file} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise OperatorError(f"PRICES_FILE {file} is not JSON: {error}.") from None
    except InvalidOperation:
        raise OperatorError(f"PRICES_FILE {file} has too large an exponent.") from None
    if not isinstance(found, dict):
        raise OperatorError(f"PRICES_FILE {file} must be a JSON object with a name for each model.")
    try:
        return {model.lower(): _prices(model, of_model) for model, of_model in found.items()}
    except ValueError as error:
        raise OperatorError(f"PRICES_FILE {file}: {error}.") from None


def _prices(model: str, of_model: Any) -> Prices:
    """The prices of one model. Raises ValueError, which says what is wrong."""
    if not isinstance(of_model, Mapping):
        raise ValueError(f"{model} must have an object with `input` and `output`")
    unknown, missing = of_model.keys() - _KINDS, _REQUIRED - of_model.keys()
    if unknown:
        raise ValueError(f"{model} has the unknown price `{min(unknown)}`")
    if missing:
        raise ValueError(f"{model} has no price `{min(missing)}`")
    return Prices(
        {_KINDS[name]: [(0, _pico(f"{model}.{name}", price))] for name, price in of_model.items()}
    )


def _pico(name: str, price: Any) -> int:
    """A price in USD for a million tokens, in pico-dollars for a token. Raises ValueError."""
    # Refuses True, which is an int in Python, and NaN and Infinity, which the parser reads as
    # floats.
    is_number = type(price) is int or isinstance(price, Decimal)
    if not (is_number and 0 <= price <= _MAX_PRICE and price * _PICO_PER_TOKEN % 1 == 0):
        raise ValueError(
            f"{name} must be USD for a million tokens: a number from 0 to {_MAX_PRICE:,} with at "
            "most six decimals"
        )
    return int(price * _PICO_PER_TOKEN)
