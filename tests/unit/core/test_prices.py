"""What a model call costs."""

from datetime import UTC, date, datetime, time, timedelta, timezone
from typing import Any

import pytest

from evershell.core.prices import Model, PriceList, Prices, Provider
from tests.support.world import NOW

# 1 USD per million tokens, as pico-dollars per token.
USD = 1_000_000


def cost(prices: dict[str, Any], **counts: int) -> int | None:
    """Returns the cost of a call in nano-dollars. `counts` adds or replaces numbers of tokens."""
    tiers = {
        kind: price if isinstance(price, list) else [(0, price)] for kind, price in prices.items()
    }
    call = {"model": "M", "input_tokens": 1000, "output_tokens": 100, **counts}
    return PriceList(own={"m": Prices(tiers)}).cost(call, NOW)


PLAIN = {"input_tokens": 2 * USD, "output_tokens": 10 * USD}


def test_a_part_has_its_own_price_or_that_of_the_rest() -> None:
    assert cost(PLAIN) == 1000 * 2000 + 100 * 10_000
    parts = {"cached_input_tokens": 400, "reasoning_tokens": 30, "input_audio_tokens": 50}
    assert cost(PLAIN, **parts) == cost(PLAIN)
    priced = PLAIN | {"cached_input_tokens": USD, "input_audio_tokens": 40 * USD}
    expected = 550 * 2000 + 400 * 1000 + 50 * 40_000 + 100 * 10_000
    assert cost(priced, **parts) == expected
    assert cost(priced | {"reasoning_tokens": 20 * USD}, **parts) == expected + 30 * 10_000


@pytest.mark.parametrize(
    ("prices", "expected"),
    [
        ({}, 1000 * 2000),
        ({"cache_write_tokens": 3 * USD}, 700 * 2000 + 300 * 3000),
        ({"cache_write_1h_tokens": 4 * USD}, 900 * 2000 + 100 * 4000),
        (
            {"cache_write_tokens": 3 * USD, "cache_write_1h_tokens": 4 * USD},
            700 * 2000 + 200 * 3000 + 100 * 4000,
        ),
    ],
)
def test_what_is_cached_for_an_hour_is_a_part_of_what_is_cached(
    prices: dict[str, int], expected: int
) -> None:
    counts = {"cache_write_tokens": 300, "cache_write_1h_tokens": 100, "output_tokens": 0}
    assert cost(PLAIN | prices, **counts) == expected


def test_more_parts_than_the_whole_do_not_make_it_cheaper() -> None:
    priced = PLAIN | {"cached_input_tokens": USD}
    assert cost(priced, cached_input_tokens=3000, output_tokens=0) == 3000 * 1000


def test_the_price_of_a_long_call_applies_to_all_its_tokens() -> None:
    tiers = {"input_tokens": [(0, USD), (1001, 3 * USD)], "output_tokens": [(0, 0), (1001, USD)]}
    assert cost(tiers) == 1000 * 1000
    assert cost(tiers, input_tokens=1001) == 1001 * 3000 + 100 * 1000


def test_a_call_is_rounded_half_up_to_a_nano_dollar() -> None:
    prices = {"input_tokens": 499, "output_tokens": 500}
    assert cost(prices, input_tokens=1, output_tokens=0) == 0
    assert cost(prices, input_tokens=0, output_tokens=1) == 1


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ({"model": "x", "input_tokens": 1}, None),
        ({"model": "x"}, None),
        ({"model": "m" * 201}, None),
        ({"input_tokens": "1"}, None),
        ({}, 0),
        ({"model": "", "input_tokens": "0", "output_tokens": "0"}, 0),
    ],
)
def test_only_an_iteration_without_a_model_costs_nothing(
    call: dict[str, Any], expected: int | None
) -> None:
    prices = PriceList(own={"m" * 201: Prices({"input_tokens": [(0, 1)]})})
    assert prices.cost(call, NOW) == expected


def test_the_last_price_that_applies_is_that_of_the_moment() -> None:
    def price(usd: int, **limits: Any) -> Prices:
        return Prices({"input_tokens": [(0, usd * USD)]}, **limits)

    night = {"start_time": time(16, 30), "end_time": time(0, 30)}
    models = [
        Model(("equals", "dated"), (price(1), price(2, start_date=date(2026, 3, 1)))),
        Model(("equals", "nightly"), (price(1), price(2, **night))),
    ]
    prices = PriceList([Provider(("contains", ""), models)])

    def usd(model: str, at: datetime) -> float:
        found = prices.cost({"model": model, "input_tokens": 10**6}, at)
        assert found is not None
        return found / 10**9

    march = datetime(2026, 3, 1, tzinfo=UTC)
    assert [usd("dated", march - timedelta(seconds=1)), usd("dated", march)] == [1, 2]
    # In UTC, this is 23:30 of the day before.
    assert usd("dated", datetime(2026, 3, 1, 1, 30, tzinfo=timezone(timedelta(hours=2)))) == 1
    minutes = [16 * 60 + 29, 16 * 60 + 30, 23 * 60 + 59, 0, 29, 30]
    found = [usd("nightly", march + timedelta(minutes=each)) for each in minutes]
    assert found == [1, 2, 2, 2, 2, 1]


def test_the_first_provider_and_its_first_model_that_match_decide() -> None:
    def model(usd: int, *clause: Any) -> Model:
        return Model(clause, (Prices({"input_tokens": [(0, usd * 1000)]}),))

    prices = PriceList(
        [
            Provider(
                ("starts_with", "a-"), [model(1, "ends_with", "-mini"), model(2, "regex", r"-\d$")]
            ),
            Provider(
                ("or", (("equals", "a-x"), ("and", (("contains", "b"), ("contains", "c"))))),
                [model(3, "contains", "")],
            ),
        ],
        {"a-own": Prices({"input_tokens": [(0, 4000)]})},
    )
    names = ["a-1-mini", "A-1", "a-x", "xbcx", "xbx", "a-own"]
    found = [prices.cost({"model": each, "input_tokens": 1}, NOW) for each in names]
    assert found == [1, 2, None, 3, None, 4]
    assert [prices.has(each) for each in names] == [each is not None for each in found]
