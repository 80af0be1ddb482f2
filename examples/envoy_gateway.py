"""Renders an EnvoyPatchPolicy that puts the edge's REST into a listener of an Envoy Gateway.

The command is `python envoy_gateway.py NAMESPACE/GATEWAY/LISTENER WORKERS > patch.json`; WORKERS is
host:port of the workers, as in EDGE_WORKERS. docs/grpc.md says what the listener lacks.
"""

import base64
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from evershell.core.errors import OperatorError
from evershell.stack.envoy.config import Edge, render
from evershell.stack.envoy.documents import edge_file

_TYPES = "type.googleapis.com/envoy.config"
# The filter chain of a listener with TLS.
_CONNECTIONS = "/filter_chains/0/filters/0/typed_config"
# The options that the gateway itself sets: who the client is, and what is logged and traced.
_OF_THE_GATEWAY = {
    *("@type", "stat_prefix", "codec_type", "server_name"),
    *("use_remote_address", "tracing", "access_log"),
}
# The regular expressions of A2A are longer than Envoy allows by default.
_A2A = "lf.a2a.v1.A2AService"


def policy(gateway: str, workers: list[str]) -> dict[str, Any]:
    """The EnvoyPatchPolicy for a listener, `namespace/gateway/listener`.

    Raises OperatorError if a worker's address is malformed.
    """
    namespace, name, _ = gateway.split("/")
    edge = _edge(workers)
    generated = json.loads(edge_file("routes.json").read_text())
    (rest,) = (each for each in edge["listeners"] if each["name"] == "rest")
    connections = rest["filter_chains"][0]["filters"][0]["typed_config"]
    *filters, _router = _inline(connections.pop("http_filters"))
    (host,) = connections.pop("route_config")["virtual_hosts"]
    # Leaves out the routes of the pages and of A2A.
    host["routes"] = [
        generated["preflight_route"],
        *(each for each in generated["routes"] if each.get("name") != _A2A),
    ]
    connections["local_reply_config"] = {"mappers": generated["local_replies"]}
    clusters = [each for each in edge["clusters"] if each["name"].startswith("control_plane")]
    listener = f"{_TYPES}.listener.v3.Listener"
    patches = [
        *(_add(f"{_TYPES}.cluster.v3.Cluster", each["name"], "", each) for each in clusters),
        *(
            _add(listener, gateway, f"{_CONNECTIONS}/{key}", value)
            for key, value in connections.items()
            if key not in _OF_THE_GATEWAY
        ),
        # Each patch inserts a filter before the existing ones, so the last filter comes first.
        *(
            _add(listener, gateway, f"{_CONNECTIONS}/http_filters/0", each)
            for each in reversed(filters)
        ),
        _add(f"{_TYPES}.route.v3.RouteConfiguration", gateway, "/virtual_hosts", [host]),
    ]
    return {
        "apiVersion": "gateway.envoyproxy.io/v1alpha1",
        "kind": "EnvoyPatchPolicy",
        "metadata": {"name": "evershell", "namespace": namespace},
        "spec": {
            "targetRef": {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": name},
            "type": "JSONPatch",
            "jsonPatches": patches,
        },
    }


def _edge(workers: list[str]) -> dict[str, Any]:
    """The listeners and clusters of the edge."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "envoy.yaml")
        render(Edge(8080, 8081, workers, path.with_name("admin.sock")), path)
        edge: dict[str, Any] = yaml.load(path.read_text(), yaml.CSafeLoader)["static_resources"]
    return edge


def _inline(value: Any) -> Any:
    """Replaces the names of files with their content: the gateway does not have the files."""
    if isinstance(value, list):
        return [_inline(each) for each in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"filename"}:
        return {"inline_string": Path(value["filename"]).read_text()}
    copy = {key: _inline(each) for key, each in value.items()}
    if path := copy.pop("proto_descriptor", None):
        copy["proto_descriptor_bin"] = base64.b64encode(Path(path).read_bytes()).decode()
    return copy


def _add(kind: str, name: str, path: str, value: Any) -> dict[str, Any]:
    return {
        "type": kind,
        "name": name,
        "operation": {"op": "add", "path": path, "value": value},
    }


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1].count("/") != 2:
        sys.exit(__doc__)
    try:
        json.dump(policy(sys.argv[1], sys.argv[2].split(",")), sys.stdout, indent=1)
    except OperatorError as error:
        sys.exit(str(error))
