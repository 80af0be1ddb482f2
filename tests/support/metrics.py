"""Reads the metrics of a stack."""

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.support.stack import Stack

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(stack: Stack, index: int, timeout_seconds: float = 20.0) -> Samples:
    """The samples of one program: the workers in order, then the fleet controller."""
    url = f"http://127.0.0.1:{stack.metrics_port + index}/metrics"
    text = httpx.get(url, trust_env=False, timeout=timeout_seconds).text
    families = text_string_to_metric_families(text)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }
