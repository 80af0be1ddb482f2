"""Reads the metrics of a stack."""

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.support.stack import Stack

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(stack: Stack, index: int, timeout_seconds: float = 20.0) -> Samples:
    """The samples of one program: the workers in order, the fleet controller, Envoy."""
    return read(f"http://127.0.0.1:{stack.metrics_port + index}/metrics", timeout_seconds)


def read(url: str, timeout_seconds: float = 20.0) -> Samples:
    """The samples at this URL."""
    text = httpx.get(url, trust_env=False, timeout=timeout_seconds).text
    # With the types, the parser adds `_total` to Envoy's counters, which Prometheus does not do.
    untyped = "\n".join(line for line in text.splitlines() if not line.startswith("#")) + "\n"
    families = text_string_to_metric_families(untyped)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }
