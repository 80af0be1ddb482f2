"""How the variables of OpenTelemetry become Envoy's configuration."""

import pytest

from evershell.core.errors import OperatorError
from evershell.stack.envoy.collector import Collector

ENDPOINT = "http://127.0.0.1:4318"


def collector(endpoint: str = ENDPOINT, **variables: str) -> Collector:
    found = Collector.of(endpoint, variables)
    assert found is not None
    return found


def test_without_an_endpoint_there_is_none() -> None:
    assert Collector.of("", {}) is None
    assert Collector.of(ENDPOINT, {"OTEL_SDK_DISABLED": "true"}) is None


@pytest.mark.parametrize(
    ("endpoint", "variables", "url"),
    [
        (ENDPOINT, {}, f"{ENDPOINT}/v1/traces"),
        (f"{ENDPOINT}/base/", {}, f"{ENDPOINT}/base/v1/traces"),
        (ENDPOINT, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://b/x"}, "http://b/x"),
    ],
)
def test_the_url_is_that_of_opentelemetry(
    endpoint: str, variables: dict[str, str], url: str
) -> None:
    assert collector(endpoint, **variables).url == url


@pytest.mark.parametrize("endpoint", ["127.0.0.1:4317", "grpc://a:4317", "http://"])
def test_an_endpoint_that_is_not_a_url_is_refused(endpoint: str) -> None:
    with pytest.raises(OperatorError, match="OTEL_EXPORTER_OTLP_ENDPOINT"):
        Collector.of(endpoint, {})


def test_the_error_names_the_variable_that_is_wrong() -> None:
    with pytest.raises(OperatorError, match=r"TRACES_ENDPOINT must be .* not 'grpc://a'"):
        Collector.of(ENDPOINT, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "grpc://a"})


def test_headers_are_in_the_environment_and_not_in_the_configuration() -> None:
    found = collector(OTEL_EXPORTER_OTLP_HEADERS="Api-Key=a%20secret, other=b=c")
    assert found.headers == (("api-key", "a secret"), ("other", "b=c"))
    assert list(found.environment().values()) == ["a secret", "b=c"]
    shown = f"{found} {found.tracing()} {found.cluster()}"
    assert "secret" not in shown and all(name in shown for name in found.environment())


@pytest.mark.parametrize(
    ("sampler", "argument", "percent"),
    [
        ("", "", 100),
        ("parentbased_always_on", "", 100),
        ("always_off", "", 0),
        ("parentbased_traceidratio", "0.25", 25),
        ("traceidratio", "1", 100),
    ],
)
def test_the_sampler_applies_to_calls_without_a_trace(
    sampler: str, argument: str, percent: float
) -> None:
    variables = {"OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": argument or "1"}
    assert collector(**variables).tracing()["random_sampling"] == {"value": percent}
