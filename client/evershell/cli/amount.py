"""Amounts of money on the command line."""

import re
from decimal import Decimal

import click

_AMOUNT = re.compile(r"\d{1,18}(\.\d{1,9})?")


class _Amount(click.ParamType[Decimal]):
    """An amount in USD: `0.50`, `2`."""

    name = "amount"

    def convert(
        self, value: str | Decimal, param: click.Parameter | None, ctx: click.Context | None
    ) -> Decimal:
        if not _AMOUNT.fullmatch(str(value).strip()):
            self.fail(f"{value!r} is not an amount in USD; write 0.50 or 2.", param, ctx)
        return Decimal(value)


AMOUNT = _Amount()
