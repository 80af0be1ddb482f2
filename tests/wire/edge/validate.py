"""Has Envoy validate its rendered configuration, with and without TLS. A part of `make check`."""

import sys
import tempfile
from pathlib import Path

from evershell.core.errors import OperatorError
from evershell.stack.envoy.config import Collector, Edge, Tls, render, validate
from tests.support.edge.certificates import Authority


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        authority = Authority(directory, "authority")
        files = authority.issue("edge")
        for tls in (
            None,
            Tls(files.cert_file, files.key_file),
            Tls(files.cert_file, files.key_file, authority.ca_file),
        ):
            workers = ["127.0.0.1:50051", "[::1]:50052", f"unix:{directory}/worker.sock"]
            # Each with and without spans.
            for endpoint in ("", "https://collector.example:4318"):
                edge = Edge(
                    *(8080, 8081, workers, directory / "admin.sock"),
                    tls=tls,
                    collector=Collector.of(endpoint, {}),
                )
                render(edge, directory / "envoy.yaml")
                try:
                    validate(directory / "envoy.yaml")
                except OperatorError as error:
                    sys.exit(f"envoy.yaml, with {tls or 'plain text'} {endpoint}: {error}")


if __name__ == "__main__":
    main()
