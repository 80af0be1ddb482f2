"""The Envoy under measurement: the service's own configuration, with a log of every call."""

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from evershell.local.environments import edge_environment
from evershell.local.envoy import config as envoy
from tests.bench import processes
from tests.support.named_workers import NAME, NamedWorkers
from tests.support.ports import free_ports
from tests.support.waiting import eventually

_CONFIG = "type.googleapis.com/envoy.config.endpoint.v3"
_LOGGERS = "type.googleapis.com/envoy.extensions.access_loggers"
_MANAGER = "envoy.filters.network.http_connection_manager"
_WORKERS = "workers"


class Endpoints:
    """The workers, in a file that Envoy watches (EDS)."""

    def __init__(self, folder: Path, port: int, lag_seconds: float) -> None:
        """`lag_seconds` is the time from a change until it is in the file."""
        self.path = folder / "endpoints" / "endpoints.json"
        self.path.parent.mkdir()
        self._port, self._lag_seconds = port, lag_seconds
        self._statuses: dict[str, str] = {}
        self._changing = threading.Lock()

    def put(self, address: str, status: str) -> None:
        """Sets the status of a worker. Empty: the worker is not there any more."""
        if self._lag_seconds:
            threading.Timer(self._lag_seconds, self.put_now, (address, status)).start()
        else:
            self.put_now(address, status)

    def put_now(self, address: str, status: str) -> None:
        """Sets the status without the lag."""
        with self._changing:
            self._statuses[address] = status
            found = [
                {"endpoint": {"address": _socket(host, self._port)}, "health_status": known}
                for host, known in self._statuses.items()
                if known
            ]
            resource = {
                "@type": f"{_CONFIG}.ClusterLoadAssignment",
                "cluster_name": _WORKERS,
                "endpoints": [{"lb_endpoints": found}],
            }
            # Envoy reads the file when it is moved to its place.
            new = self.path.parent.with_suffix(".new")
            new.write_text(json.dumps({"resources": [resource]}))
            new.replace(self.path)

    def cluster(self) -> dict[str, Any]:
        """What a cluster has instead of the names of the workers."""
        source = {"path": str(self.path), "watched_directory": {"path": str(self.path.parent)}}
        config = {"path_config_source": source, "resource_api_version": "V3"}
        return {
            "type": "EDS",
            "eds_cluster_config": {"service_name": _WORKERS, "eds_config": config},
        }


@dataclass(frozen=True, slots=True)
class MeasuredEdge:
    """A running Envoy."""

    rest_url: str
    grpc_address: str
    # A line for each call that has ended: when Envoy got it, and the worker that it was sent to.
    log: Path


@contextmanager
def running(
    workers: NamedWorkers, folder: Path, endpoints: Endpoints | None
) -> Iterator[MeasuredEdge]:
    """Runs an Envoy that finds the workers by their name, or by the endpoints, inside the block."""
    rest_port, grpc_port = free_ports(2)
    settings = envoy.Edge(
        rest_port=rest_port,
        grpc_port=grpc_port,
        workers=[f"{NAME}:{workers.port}"],
        admin_socket=folder / "admin.sock",
    )
    path, log = folder / "envoy.yaml", folder / "calls.log"
    envoy.render(settings, path)
    configuration = yaml.safe_load(path.read_text())
    _log_calls(configuration, log)
    if endpoints is not None:
        _use(endpoints, configuration)
    path.write_text(json.dumps(configuration))
    with (folder / "envoy.log").open("wb") as output:
        process = subprocess.Popen(
            [*workers.runner, *envoy.command(path)],
            env=edge_environment(settings),
            stdout=output,
            stderr=output,
        )
    url = f"http://127.0.0.1:{rest_port}"
    try:
        eventually(lambda: _serves(url))
        yield MeasuredEdge(url, f"127.0.0.1:{grpc_port}", log)
    finally:
        processes.stop(process)


def _serves(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", trust_env=False).is_success
    except httpx.TransportError:
        return False


def _log_calls(configuration: dict[str, Any], log: Path) -> None:
    line = {"text_format_source": {"inline_string": "%START_TIME(%s.%3f)% %UPSTREAM_HOST%\n"}}
    logger = {
        "name": "envoy.access_loggers.file",
        "typed_config": {
            "@type": f"{_LOGGERS}.file.v3.FileAccessLog",
            "path": str(log),
            "log_format": line,
        },
    }
    for listener in configuration["static_resources"]["listeners"]:
        for chain in listener["filter_chains"]:
            for each in chain["filters"]:
                if each["name"] == _MANAGER:
                    each["typed_config"]["access_log"].append(logger)


def _use(endpoints: Endpoints, configuration: dict[str, Any]) -> None:
    for cluster in configuration["static_resources"]["clusters"]:
        if "cluster_type" in cluster:
            del cluster["cluster_type"], cluster["load_assignment"]
            cluster |= endpoints.cluster()


def _socket(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}
