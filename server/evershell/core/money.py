"""Amounts of money, in whole nano-dollars, the smallest unit of google.type.Money."""

from typing import Any

# The currency of all amounts.
CURRENCY = "USD"
NANOS_PER_DOLLAR = 10**9


def fields(nanos: int) -> dict[str, Any]:
    """The fields of google.type.Money for an amount in nano-dollars."""
    units, nanos = divmod(nanos, NANOS_PER_DOLLAR)
    return {"currency_code": CURRENCY, "units": units, "nanos": nanos}


def text(nanos: int) -> str:
    """The amount in dollars, with at least two decimals."""
    dollars = f"{nanos // NANOS_PER_DOLLAR}.{nanos % NANOS_PER_DOLLAR:09}"
    return dollars[:-7] + dollars[-7:].rstrip("0")
