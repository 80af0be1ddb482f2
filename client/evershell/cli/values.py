"""Durations and amounts of money on the command line."""

import re
from decimal import Decimal

import click

_UNITS_SECONDS = {"ms": 0.001, "s": 1, "": 1, "m": 60, "h": 3_600, "d": 86_400}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|)")
# The longest google.protobuf.Duration.
_MAX_SECONDS = 315_576_000_000
_AMOUNT = re.compile(r"\d{1,18}(\.\d{1,9})?")


class _Duration(click.ParamType[float]):
    """Converts a duration to seconds: `500ms`, `10s`, `1m`, `1h`, `30d`, or a number of seconds."""

    name = "duration"

    def convert(
        self, value: str | float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        match = _DURATION.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not a duration; write 500ms, 10s, 1m, 1h or 30d.", param, ctx)
        seconds = float(match[1]) * _UNITS_SECONDS[match[2]]
        if seconds > _MAX_SECONDS:
            self.fail(f"{value!r} is too long.", param, ctx)
        return seconds


DURATION = _Duration()


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
