"""Has Envoy validate its rendered configuration, with and without TLS. A part of `make check`."""

import sys
import tempfile
from pathlib import Path

from evershell.core.errors import OperatorError
from evershell.stack.envoy.collector import Collector
from evershell.stack.envoy.config import Edge, Tls, render, validate
from evershell.stack.envoy.sign_in import Provider
from tests.support.edge.certificates import Authority

PROVIDER = Provider(
    client_id="console",
    client_secret="secret",
    authorization_url="https://login.example/authorize",
    token_url="https://login.example/token",
)


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
            # Each configuration is validated with and without spans and sign-in.
            for endpoint, provider in (("", None), ("https://collector.example:4318", PROVIDER)):
                edge = Edge(
                    *(8080, 8081, workers, directory / "admin.sock"),
                    tls=tls,
                    collector=Collector.of(endpoint, {}),
                    provider=provider,
                )
                render(edge, directory / "envoy.yaml")
                try:
                    validate(directory / "envoy.yaml")
                except OperatorError as error:
                    sys.exit(f"envoy.yaml, with {tls or 'plain text'} {endpoint}: {error}")


if __name__ == "__main__":
    main()
