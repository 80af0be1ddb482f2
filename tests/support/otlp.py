"""Receives the spans that programs export with OTLP over HTTP."""

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Receiver:
    """A server that keeps the spans that it receives."""

    def __init__(self) -> None:
        self._spans: list[tuple[str, Span]] = []
        # The bodies of the requests, uncompressed.
        self.received: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def spans(self, trace_id: str) -> list[Span]:
        """Returns the spans of a trace."""
        return [span for _, span in self._spans if span.trace_id.hex() == trace_id]

    def of(self, trace_id: str) -> list[tuple[str, Span]]:
        """Returns the spans of a trace, each with the name of its service."""
        return [each for each in self._spans if each[1].trace_id.hex() == trace_id]

    def names(self, trace_id: str = "") -> list[tuple[str, str]]:
        """Returns the service and the name of each span of a trace; of all traces by default."""
        found = self.of(trace_id) if trace_id else self._spans
        return [(service, span.name) for service, span in found]

    def services(self) -> set[str]:
        """Returns the names of the services that have sent spans."""
        return {service for service, _ in self._spans}

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self._server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self._body()
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                assert self.path == "/v1/traces"
                receiver.received.append(body)
                receiver.headers.append(dict(self.headers))
                receiver._take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.end_headers()
                self.wfile.write(ExportTraceServiceResponse().SerializeToString())

            def _body(self) -> bytes:
                if "content-length" in self.headers:
                    return self.rfile.read(int(self.headers["content-length"]))
                # Envoy sends its body in chunks.
                chunks = []
                while size := int(self.rfile.readline(), 16):
                    chunks.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(chunks)

            def log_message(
                self,
                format: str,  # noqa: A002 - named by the library
                *arguments: object,
            ) -> None:
                pass

        return Handler

    def _take(self, request: ExportTraceServiceRequest) -> None:
        for resource in request.resource_spans:
            names = [
                each.value.string_value
                for each in resource.resource.attributes
                if each.key == "service.name"
            ]
            for scope in resource.scope_spans:
                self._spans += [(names[0], span) for span in scope.spans]
