"""Writes the names of Services to a file for dnsmasq, which answers like the DNS of a cluster.

    cluster_names.py FILE PID CACHE_SECONDS

The name of a headless Service resolves to the addresses of its ready pods, the name of any other
Service to the Service's own address. A new name appears immediately. A changed address appears
CACHE_SECONDS later, because the DNS of many clusters caches answers for that long. PID is the
process id of dnsmasq, which reads FILE again at SIGHUP. KUBECONFIG has the address of the API
server and a token. While the API server does not answer, the known names keep their addresses. The
program ends when dnsmasq or the program's parent ends.
"""

import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import httpx

_POLL_SECONDS = 0.5
# The time limit of a call to the API server.
_CALL_SECONDS = 5.0
_DOMAIN = "svc.cluster.local"

# Maps each name to its addresses.
Names: TypeAlias = dict[str, list[str]]


def connect() -> httpx.Client:
    """A client of the API server."""
    config = json.loads(Path(os.environ["KUBECONFIG"]).read_text())
    return httpx.Client(
        base_url=config["clusters"][0]["cluster"]["server"] + "/api/v1/",
        headers={"authorization": f"Bearer {config['users'][0]['user']['token']}"},
        timeout=_CALL_SECONDS,
        verify=False,  # noqa: S501 - the certificate is self-signed
    )


def read(api: httpx.Client) -> Names:
    """The current addresses of each name that has any. Raises httpx.HTTPError."""

    def items(kind: str) -> list[dict[str, Any]]:
        objects: list[dict[str, Any]] = api.get(kind).raise_for_status().json()["items"]
        return objects

    ready = {_name(each): sorted(_ready(each)) for each in items("endpoints")}
    names = {
        _name(each): ready.get(_name(each), []) if ip == "None" else [ip]
        for each in items("services")
        if (ip := each["spec"]["clusterIP"])
    }
    return {name: ips for name, ips in names.items() if ips}


def _name(object_: dict[str, Any]) -> str:
    return f"{object_['metadata']['name']}.{object_['metadata']['namespace']}.{_DOMAIN}"


def _ready(endpoints: dict[str, Any]) -> list[str]:
    return [
        address["ip"]
        for subset in endpoints.get("subsets") or ()
        for address in subset.get("addresses") or ()
    ]


def main(path: Path, pid: int, cache_seconds: float) -> None:
    """Runs until dnsmasq, or the parent of this process, has ended."""
    published: Names = {}
    # Each result of `read` with its time, oldest first. A result is deleted once no DNS cache can
    # still hold it.
    history: list[tuple[float, Names]] = []
    parent = os.getppid()
    with connect() as api:
        while os.getppid() == parent and _runs(pid):
            now = time.monotonic()
            # The call may fail, because the API server may be restarting.
            with suppress(httpx.HTTPError):
                history.append((now, read(api)))
            while len(history) > 1 and history[1][0] <= now - cache_seconds:
                del history[0]
            cached, new = (history[0][1], history[-1][1]) if history else ({}, {})
            names = {name: cached.get(name, published.get(name, new[name])) for name in new}
            if names != published:
                lines = [f"{ip} {name}\n" for name, ips in names.items() for ip in ips]
                path.write_text("".join(lines))
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGHUP)
                published = names
            time.sleep(_POLL_SECONDS)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
