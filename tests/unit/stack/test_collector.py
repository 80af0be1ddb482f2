"""The variables of OpenTelemetry, as Envoy's configuration has them."""

from typing import Any

import pytest

from evershell.core.errors import OperatorError
from evershell.stack.envoy.config import Collector

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


@pytest.mark.parametrize("argument", ["2", "-1", "half", "nan"])
def test_a_share_that_is_none_is_refused(argument: str) -> None:
    variables = {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": argument}
    with pytest.raises(OperatorError, match="OTEL_TRACES_SAMPLER_ARG"):
        Collector.of(ENDPOINT, variables)


@pytest.mark.parametrize(
    ("endpoint", "kind", "port", "is_tls"),
    [
        (ENDPOINT, "STATIC", 4318, False),
        ("http://collector", "STRICT_DNS", 80, False),
        ("https://collector", "STRICT_DNS", 443, True),
        ("http://[::1]:4318", "STATIC", 4318, False),
    ],
)
def test_the_cluster_has_the_host_of_the_url(
    endpoint: str, kind: str, port: int, is_tls: bool
) -> None:
    cluster = collector(endpoint).cluster()
    (group,) = cluster["load_assignment"]["endpoints"]
    (found,) = group["lb_endpoints"]
    assert cluster["type"] == kind
    assert found["endpoint"]["address"]["socket_address"]["port_value"] == port
    assert ("transport_socket" in cluster) == is_tls


def test_only_calls_of_workers_have_a_span() -> None:
    def named(route: dict[str, Any]) -> str | None:
        (traced,) = collector().traced([route])
        decorator = traced.get("decorator")
        assert (decorator is None) == ("tracing" in traced)
        return decorator and decorator["operation"]

    worker = {"cluster": "control_plane"}
    post = {"name": ":method", "string_match": {"exact": "POST"}}
    get = {"name": ":method", "string_match": {"safe_regex": {"regex": "GET|HEAD"}}}
    path = {"regex": "/v1/workspaces/[^/]+/tasks"}
    assert named({"match": {"path": "/a.B/C", "grpc": {}}, "route": worker}) == "a.B/C"
    assert (
        named({"match": {"safe_regex": path, "headers": [post]}, "route": worker})
        == "POST /v1/workspaces/*/tasks"
    )
    assert (
        named({"match": {"safe_regex": path, "headers": [get]}, "route": worker})
        == "GET /v1/workspaces/*/tasks"
    )
    assert named({"match": {"prefix": "/"}, "direct_response": {"status": 404}}) is None
    assert named({"match": {"prefix": "/"}, "route": {"cluster": "introspection"}}) is None
