"""A DNS server on loopback whose addresses a test changes."""

import shutil
import socketserver
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dnslib import QTYPE, RR, A, DNSRecord

# As that of a cluster's DNS. Clients that keep an answer for so long miss changes.
TTL_SECONDS = 30


class Dns:
    """Answers for one name, with the addresses of a headless service."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.addresses: Sequence[str] = ()
        self.port = 0
        self.ttl_seconds = TTL_SECONDS
        self._cache_seconds = 0.0
        # When the addresses were cached, and which.
        self._cached_at = 0.0
        self._cached: Sequence[str] = ()
        # How many times the addresses were asked for.
        self.queries = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        server = socketserver.ThreadingUDPServer(("127.0.0.1", 0), self._handler())
        self.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def cache(self, seconds: float) -> None:
        """Makes the server keep addresses for so long, from now on. 0 for no cache."""
        self._cache_seconds = seconds
        self._cached_at, self._cached = time.monotonic(), self.addresses

    def answer(self) -> tuple[Sequence[str], int]:
        """The addresses, and for how many seconds a client may keep them."""
        age = time.monotonic() - self._cached_at
        if age >= self._cache_seconds:
            self.cache(self._cache_seconds)
            age = 0.0
        return self._cached, max(0, self.ttl_seconds - int(age))

    def _handler(self) -> type[socketserver.BaseRequestHandler]:
        dns = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                packet, connection = self.request
                question = DNSRecord.parse(packet)
                answer = question.reply()
                asked = str(question.q.qname).rstrip(".")
                if asked == dns.name and QTYPE[question.q.qtype] == "A":
                    dns.queries += 1
                    addresses, ttl = dns.answer()
                    for address in addresses:
                        answer.add_answer(RR(dns.name, QTYPE.A, rdata=A(address), ttl=ttl))
                connection.sendto(answer.pack(), self.client_address)

        return Handler


def resolving_by(dns: Dns, folder: Path) -> list[str]:
    """A command that runs its arguments with this server as the system's only DNS server."""
    unshare = shutil.which("unshare")
    assert unshare is not None
    path = folder / "resolv.conf"
    path.write_text(f"nameserver 127.0.0.1:{dns.port}\noptions attempts:2 timeout:1\n")
    script = f'mount --bind {path} /etc/resolv.conf && exec "$@"'
    return [unshare, "--mount", "/bin/sh", "-c", script, "sh"]
