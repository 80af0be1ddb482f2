"""Reads the metrics of a stack."""

from contextlib import suppress

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.support.stack import Stack
from tests.support.waiting import eventually

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(stack: Stack, index: int, timeout_seconds: float = 20.0) -> Samples:
    """Returns the samples of one program.

    `index` selects the program: the workers in order come first, then one controller, Envoy, and
    the other controller.
    """
    return read(f"http://127.0.0.1:{stack.metrics_port + index}/metrics", timeout_seconds)


def read(url: str, timeout_seconds: float = 20.0) -> Samples:
    """Returns the samples at this URL."""
    text = httpx.get(url, trust_env=False, timeout=timeout_seconds).text
    # Leaves out the types. Otherwise, the parser would add `_total` to the names of Envoy's
    # counters, but Prometheus does not.
    untyped = "\n".join(line for line in text.splitlines() if not line.startswith("#")) + "\n"
    families = text_string_to_metric_families(untyped)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def await_metrics(stack: Stack, index: int) -> None:
    """Waits until the program serves its metrics. A stack starts the standby controller last."""

    def is_served() -> bool:
        with suppress(httpx.TransportError):
            return bool(scrape(stack, index))
        return False

    eventually(is_served, 30)
