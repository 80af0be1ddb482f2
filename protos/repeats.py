"""The metadata of routes that says whether a failed call can be repeated without a second effect.

The Lua filter reads the metadata for REST, and the mappers of Envoy's own answers for gRPC.
"""

from copy import deepcopy
from typing import Any

# A name of EdgeRule.Repeat.
ALWAYS = "always"
NAMESPACE = "envoy.filters.http.lua"
CEL = "type.googleapis.com/envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter"
# Matches Envoy's own answers on a route whose calls can be repeated.
IS_REPEATABLE = {
    "extension_filter": {
        "name": "envoy.access_loggers.extension_filters.cel",
        "typed_config": {
            "@type": CEL,
            "expression": f'xds.route_metadata.filter_metadata["{NAMESPACE}"]["repeatable"]',
        },
    }
}
_HAS_KEY = {"name": "idempotency-key", "present_match": True}


def routes(route: dict[str, Any], when: str) -> list[dict[str, Any]]:
    """The route with its metadata, or two routes if the metadata depends on a header.

    `when` is a name of EdgeRule.Repeat. With `if_task_is_named`, calls count as not repeatable: the
    edge does not know whether a body names a task.
    """
    if when == "with_idempotency_key":
        return [_marked(route, [_HAS_KEY], True), _marked(route, [], False)]
    return [_marked(route, [], when == ALWAYS)]


def _marked(
    route: dict[str, Any], headers: list[dict[str, Any]], repeatable: bool
) -> dict[str, Any]:
    marked = deepcopy(route)
    if headers:
        marked["match"]["headers"] = [*marked["match"].get("headers", []), *headers]
    metadata = marked.setdefault("metadata", {}).setdefault("filter_metadata", {})
    metadata.setdefault(NAMESPACE, {})["repeatable"] = repeatable
    return marked
