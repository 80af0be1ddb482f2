"""Generates server/evershell/app/prices.json, the prices of models, from the package genai-prices.

An import of the package takes 100 MB and half a second, so the service does not use it. A test
compares the costs that the service computes from the file with the costs from the package.
"""

import argparse
import json
import sys
from datetime import date, time
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path
from typing import Any

from genai_prices.data import providers

FILE = Path(__file__).resolve().parents[1] / "server" / "evershell" / "app" / "prices.json"
# Maps the names of prices in the package to the fields of a model call (core/prices.py).
KINDS = {
    "input_mtok": "input_tokens",
    "output_mtok": "output_tokens",
    "cache_read_mtok": "cached_input_tokens",
    "cache_write_mtok": "cache_write_tokens",
    "cache_write_1h_mtok": "cache_write_1h_tokens",
    "input_audio_mtok": "input_audio_tokens",
    "output_reasoning_mtok": "reasoning_tokens",
    "output_audio_mtok": "output_audio_tokens",
}
PICO_PER_TOKEN = 1_000_000


def document() -> str:
    """The content of the file: a line for each model."""
    by_id = {provider.id: provider for provider in providers}
    listed = []
    for provider in providers:
        # Skips providers that the package does not search if it is given only the name of a model.
        if provider.model_match is None:
            continue
        fallbacks = [by_id[each] for each in provider.fallback_model_providers or ()]
        models = [model for each in (provider, *fallbacks) for model in each.models]
        lines = ",\n".join(json.dumps(_model(model)) for model in models)
        clause = json.dumps(_clause(provider.model_match))
        listed.append(f'{{"clause": {clause}, "models": [\n{lines}\n]}}')
    source = json.dumps(f"genai-prices {version('genai-prices')}")
    return f'{{"source": {source}, "providers": [\n' + ",\n".join(listed) + "\n]}\n"


def _model(model: Any) -> dict[str, Any]:
    """The entry of a model. A model without a price for tokens gets an entry without prices.

    Such an entry is needed: it takes precedence over later entries that match the same name.
    """
    prices = model.prices if isinstance(model.prices, list) else [model]
    periods = [_period(each) for each in prices]
    has_price = all("input_tokens" in each["tokens"] for each in periods)
    return {"clause": _clause(model.match), "prices": periods if has_price else []}


def _period(conditional: Any) -> dict[str, Any]:
    constraint = getattr(conditional, "constraint", None)
    limits = {} if constraint is None else vars(constraint)
    tokens = {
        kind: _tiers(price)
        for name, kind in KINDS.items()
        if (price := getattr(conditional.prices, name)) is not None
    }
    return {"tokens": tokens} | {name: _in_utc(each) for name, each in limits.items()}


def _in_utc(limit: date | time) -> str:
    """A day or a time of day as text. The zone of a time must be UTC, and is left out."""
    if isinstance(limit, time):
        if limit.utcoffset():
            raise ValueError(f"{limit} is not in UTC")
        limit = limit.replace(tzinfo=None)
    return limit.isoformat()


def _tiers(price: Any) -> list[tuple[int, int]]:
    if isinstance(price, Decimal):
        return [(0, _pico(price))]
    # In the package, a tier applies to more than `start` tokens. The file has the least number of
    # tokens for each tier.
    return [(0, _pico(price.base)), *((each.start + 1, _pico(each.price)) for each in price.tiers)]


def _pico(price: Decimal) -> int:
    pico = price * PICO_PER_TOKEN
    if pico != int(pico):
        raise ValueError(f"the price {price} has too many digits")
    return int(pico)


def _clause(clause: Any) -> tuple[str, Any]:
    ((name, value),) = vars(clause).items()
    kind = name.rstrip("_")
    if isinstance(value, list):
        return kind, [_clause(each) for each in value]
    return kind, value if kind == "regex" else value.lower()


def main() -> None:
    """Writes the file. With --check, exits with 1 if it has drifted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; compare")
    if not parser.parse_args().check:
        FILE.write_text(document())
    elif not FILE.exists() or FILE.read_text() != document():
        sys.exit(f"{FILE} has drifted; run `make gen`")


if __name__ == "__main__":
    main()
