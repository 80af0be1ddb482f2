"""The patch of examples/envoy_gateway.py, on a listener like those that Envoy Gateway generates.

A real Envoy validates the result and serves it in front of the workers. Envoy Gateway itself does
not run: the test applies the patches as RFC 6902 says.
"""

import json
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evershell.stack.envoy.config import command, validate
from tests.support.edge.certificates import Authority, Certificate
from tests.support.ports import free_ports
from tests.support.stack import ROOT, Gate, Stack, Workspace
from tests.support.waiting import eventually
from tests.support.wires import Rest

NAME = "gateways/shared/https"
_EXTENSIONS = "type.googleapis.com/envoy.extensions"
_ADS = {"config_source": {"ads": {}, "resource_api_version": "V3"}}


def listener(port: int, certificate: Certificate) -> dict[str, Any]:
    """A listener with TLS and without policies.

    Envoy Gateway would send Envoy the certificate. Here, Envoy reads it from files.
    """
    connections = {
        "@type": f"{_EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "common_http_protocol_options": {"headers_with_underscores_action": "REJECT_REQUEST"},
        "http2_protocol_options": {
            "initial_connection_window_size": 1048576,
            "initial_stream_window_size": 65536,
            "max_concurrent_streams": 100,
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {
                    "@type": f"{_EXTENSIONS}.filters.http.router.v3.Router",
                    "suppress_envoy_headers": True,
                },
            }
        ],
        "merge_slashes": True,
        "normalize_path": True,
        "path_with_escaped_slashes_action": "UNESCAPE_AND_REDIRECT",
        "rds": _ADS | {"route_config_name": NAME},
        "server_header_transformation": "PASS_THROUGH",
        "stat_prefix": "https-443",
        "use_remote_address": True,
    }
    certificates = [
        {
            "certificate_chain": {"filename": str(certificate.cert_file)},
            "private_key": {"filename": str(certificate.key_file)},
        }
    ]
    tls = {
        "@type": f"{_EXTENSIONS}.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {
            "alpn_protocols": ["h2", "http/1.1"],
            "tls_certificates": certificates,
        },
    }
    return {
        "name": NAME,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [
            {
                "name": NAME,
                "filters": [
                    {
                        "name": "envoy.filters.network.http_connection_manager",
                        "typed_config": connections,
                    }
                ],
                "transport_socket": {
                    "name": "envoy.transport_sockets.tls",
                    "typed_config": tls,
                },
            }
        ],
        "per_connection_buffer_limit_bytes": 32768,
    }


def patched(policy: dict[str, Any], resources: dict[tuple[str, str], Any]) -> None:
    """Applies the policy to the resources, which are listed by type and name."""
    for patch in policy["spec"]["jsonPatches"]:
        key = (patch["type"].rpartition(".")[2], patch["name"])
        operation = patch["operation"]
        assert operation["op"] == "add"
        if not operation["path"]:
            resources[key] = operation["value"]
            continue
        *parents, last = operation["path"].split("/")[1:]
        target = resources[key]
        for each in parents:
            target = target[int(each) if isinstance(target, list) else each]
        if isinstance(target, list):
            target.insert(int(last), operation["value"])
        else:
            target[last] = operation["value"]


def bootstrap(resources: dict[tuple[str, str], Any], admin_socket: Path) -> dict[str, Any]:
    """A configuration of Envoy that contains these resources, so it needs no server for them."""
    patched_listener = resources["Listener", NAME]
    connections = patched_listener["filter_chains"][0]["filters"][0]["typed_config"]
    del connections["rds"]
    connections["route_config"] = resources["RouteConfiguration", NAME]
    return {
        "admin": {"address": {"pipe": {"path": str(admin_socket)}}},
        "static_resources": {
            "listeners": [patched_listener],
            "clusters": [value for (kind, _), value in resources.items() if kind == "Cluster"],
        },
    }


@pytest.fixture
def gateway(stack: Stack, tmp_path: Path) -> Iterator[Rest]:
    """A caller of the patched gateway, which is in front of the stack's workers."""
    (port,) = free_ports(1)
    authority = Authority(tmp_path, "authority")
    rendered = subprocess.run(
        [sys.executable, "examples/envoy_gateway.py", NAME, ",".join(stack.worker_addresses())],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
    )
    host = {"name": "gateways/route", "domains": ["agents.example"]}
    resources: dict[tuple[str, str], Any] = {
        ("Listener", NAME): listener(port, authority.issue("gateway")),
        ("RouteConfiguration", NAME): {
            "name": NAME,
            "ignore_port_in_host_matching": True,
            "virtual_hosts": [host],
        },
    }
    # The gateway does not have the files of the edge.
    assert bytes(ROOT) not in rendered.stdout
    policy = json.loads(rendered.stdout)
    assert policy["metadata"]["namespace"] == "gateways"
    assert policy["spec"]["targetRef"]["name"] == "shared"
    patched(policy, resources)
    config = tmp_path / "gateway.json"
    config.write_text(json.dumps(bootstrap(resources, tmp_path / "admin.sock")))
    validate(config)
    with (tmp_path / "gateway.log").open("w") as log:
        process = subprocess.Popen(command(config), stdout=log, stderr=log)
    trust = ssl.create_default_context(cafile=authority.ca_file)
    caller = Rest(f"https://127.0.0.1:{port}", stack.tokens["full_access"], trust)
    try:
        eventually(lambda: caller.serves("/v1/workspaces"))
        yield caller
    finally:
        caller.close()
        process.terminate()
        process.wait(15)


def test_a_patched_gateway_answers_as_the_edge(
    gateway: Rest, workspace: Workspace, gate: Gate
) -> None:
    task_id = workspace.begin(gate.command, "echo never")
    cancel = f"{workspace.path}/task/cancel"
    # A caller must not be able to set the headers that pass between the edge and the workers.
    accepted = gateway.call("POST", cancel, headers={"x-evershell-status": "500"})
    assert (accepted.status_code, accepted.json()["outcome"]) == (202, "accepted")
    gate.open()
    assert workspace.await_end(task_id)["status"] == "cancelled"
    without_token = {"headers": {"authorization": ""}}
    for status, slug, method, path, arguments in (
        (404, "workspace_not_found", "POST", "/v1/workspaces/ws_unknown/task/cancel", {}),
        (404, "not_found", "GET", "/v2", {}),
        (400, "validation_error", "POST", cancel, {"json": {"task_ids": [task_id]}}),
        (401, "unauthenticated", "POST", cancel, without_token),
        (405, "method_not_allowed", "GET", cancel, {}),
        (413, "payload_too_large", "POST", cancel, {"json": {"reason": "x" * 17_000}}),
        (
            415,
            "unsupported_media_type",
            "POST",
            cancel,
            {"data": {"a": "b"}, "headers": {"content-type": "text/xml"}},
        ),
    ):
        failed = gateway.call(method, path, **arguments)
        assert (failed.status_code, failed.json()["error"]["code"]) == (status, slug)
        assert failed.json()["error"]["request_id"] == failed.headers["x-request-id"]
        internal = ("grpc-", "x-envoy-", "x-evershell-")
        assert not [name for name in failed.headers if name.startswith(internal)]
