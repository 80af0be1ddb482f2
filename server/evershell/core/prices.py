"""What model calls cost: the tokens that agents report, at the prices of their models.

Amounts are whole nano-dollars (money.py). Prices are whole pico-dollars per token: a price of one
dollar per million tokens is 1,000,000. Only the cost of each call is rounded.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from functools import lru_cache
from typing import Any

from evershell.core.task import MAX_MODEL_CHARACTERS, TOKEN_PARTS, TOKENS

# The number of models whose prices are cached.
_MAX_KNOWN_MODELS = 1000
_PICO_PER_NANO = 1000


@dataclass(frozen=True, slots=True)
class Prices:
    """The prices of a model in a period."""

    # Maps each kind of token to pairs: the number of input tokens from which a price applies, and
    # the price. The last price that applies is charged for all tokens of this kind in the call.
    tokens: Mapping[str, Sequence[tuple[int, int]]]
    # The first day of the period, in UTC; None if the period has no beginning.
    start_date: date | None = None
    # The time of day, in UTC, from which the prices apply; None for all day.
    start_time: time | None = None
    # The time of day, in UTC, until which they apply. If it is before `start_time`, they apply
    # overnight.
    end_time: time | None = None

    def apply_at(self, moment: datetime) -> bool:
        moment = moment.astimezone(UTC)
        if self.start_time is not None and self.end_time is not None:
            now = moment.time()
            if self.end_time < self.start_time:
                return now >= self.start_time or now < self.end_time
            return self.start_time <= now < self.end_time
        return self.start_date is None or moment.date() >= self.start_date

    def cost(self, counts: Mapping[str, int]) -> int:
        """The cost of a call in nano-dollars, rounded half up."""
        # The tokens of a part (TOKEN_PARTS) without its own price are charged at the price of the
        # count that includes the part.
        left = dict(counts)
        for part, wholes in TOKEN_PARTS.items():
            if part in self.tokens:
                for whole in wholes:
                    left[whole] -= left[part]
            else:
                left[part] = 0
        pico = 0
        for kind, tiers in self.tokens.items():
            price = next(
                price for least, price in reversed(tiers) if counts["input_tokens"] >= least
            )
            pico += max(left[kind], 0) * price
        return (pico + _PICO_PER_NANO // 2) // _PICO_PER_NANO


@dataclass(frozen=True, slots=True)
class Model:
    """A model and its prices, each for a period.

    If several prices apply, the last of them is used. If none applies, the first price is used.
    """

    # Matches the names of the model; see _matches.
    clause: Sequence[Any]
    prices: Sequence[Prices]


@dataclass(frozen=True, slots=True)
class Provider:
    """A provider and its models. `clause` matches the names of all models of the provider."""

    clause: Sequence[Any]
    models: Sequence[Model]


@dataclass(frozen=True, slots=True)
class PriceList:
    """The prices of all models that have prices."""

    # The prices of the first matching model of the first matching provider apply.
    providers: Sequence[Provider] = ()
    # Maps the name of a model, in lower case, to its prices. These prices override the prices of
    # providers.
    own: Mapping[str, Prices] = field(default_factory=dict)
    _found: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_found", lru_cache(_MAX_KNOWN_MODELS)(self._find))

    def has(self, model: str) -> bool:
        """Whether the model has a price."""
        return bool(self._prices(model))

    def cost(self, call: Mapping[str, Any], at: datetime) -> int | None:
        """The cost of a model call in nano-dollars; None if its model has no price.

        `call` has the fields of the message ModelCall. A call that names no model and has no tokens
        costs nothing: the iteration used no model.
        """
        counts = {kind: int(call.get(kind, 0)) for kind in TOKENS}
        model = call.get("model", "")
        if not model and not any(counts.values()):
            return 0
        prices = self._prices(model)
        if not prices:
            return None
        current = next((each for each in reversed(prices) if each.apply_at(at)), prices[0])
        return current.cost(counts)

    def _prices(self, model: str) -> Sequence[Prices]:
        found: Sequence[Prices] = (
            () if len(model) > MAX_MODEL_CHARACTERS else self._found(model.lower())
        )
        return found

    def _find(self, name: str) -> Sequence[Prices]:
        if name in self.own:
            return (self.own[name],)
        for provider in self.providers:
            if _matches(provider.clause, name):
                found = (each for each in provider.models if _matches(each.clause, name))
                model = next(found, None)
                return model.prices if model is not None else ()
        return ()


def _matches(clause: Sequence[Any], name: str) -> bool:
    """Whether the clause matches the name.

    A clause is a pair: its kind, and either a text or a list of other clauses.
    """
    kind, wanted = clause
    match kind:
        case "equals":
            return bool(name == wanted)
        case "starts_with":
            return name.startswith(wanted)
        case "ends_with":
            return name.endswith(wanted)
        case "contains":
            return wanted in name
        case "regex":
            return re.search(wanted, name) is not None
        case "or":
            return any(_matches(each, name) for each in wanted)
        case "and":
            return all(_matches(each, name) for each in wanted)
    raise ValueError(f"a clause of an unknown kind: {kind}")
