"""The settings: one frozen object, read from the environment once and validated then."""

from pathlib import Path
from typing import Literal, Self

import psutil
from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

# No limit or lease is longer: a time without an end would be no limit.
_DAY_SECONDS = 86_400


def _program_memory_mb() -> int:
    """The default: several times what a program needs, but at most a quarter of the machine's
    memory.
    """
    return max(256, min(1024, psutil.virtual_memory().total // 2**20 // 4))


class Settings(BaseSettings):
    """Every setting is the environment variable of its name in capitals; README.md has the table
    for people.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    # Where everything that outlives a run is kept.
    state_dir: Path = Path(".state")
    # Empty: the embedded PostgreSQL. Else postgresql://…, over TCP or a socket.
    database_url: str = ""

    # REST through the edge.
    rest_port: int = Field(8080, ge=1, le=65535)
    # gRPC through the edge.
    grpc_port: int = Field(8081, ge=1, le=65535)
    # The first worker's own port; the next workers take the ports behind it.
    server_port: int = Field(50051, ge=1, le=65535)
    workers: int = Field(2, ge=1, le=64)
    # Where the servers listen.
    listen_host: str = "127.0.0.1"

    # `scripted`, or `openai:<model>`.
    model: str = "scripted"
    # Where `openai:<model>` is served: any OpenAI-compatible endpoint, up to the path that
    # `/chat/completions` follows. Empty: OpenAI's own.
    openai_base_url: str = ""
    # Empty: the endpoint asks for none.
    openai_api_key: SecretStr = SecretStr("")
    model_timeout_seconds: float = Field(120.0, gt=0, le=_DAY_SECONDS)
    tool_timeout_seconds: float = Field(600.0, gt=0, le=_DAY_SECONDS)
    # An agent that is not heard of for this long is taken for lost.
    lease_seconds: float = Field(30.0, ge=1, le=_DAY_SECONDS)

    # Who issues session tokens, for whom, and where the keys are: a file or an http(s) URL. Empty:
    # the demo's own.
    jwt_issuer: str = "https://auth.evershell.ai"
    jwt_audience: str = "evershell"
    jwks: str = ""
    # When set, a request's host must be `<org slug>.<public domain>` of its credential's
    # organization.
    public_domain: str = ""

    # Whether the calls of each credential are limited. Each worker keeps its own count, so all of
    # them together serve up to WORKERS times as much. A call within the limit is never refused.
    rate_limit: bool = True
    rate_limit_per_second: int = Field(100, ge=1)
    rate_limit_burst: int = Field(200, ge=1)
    # The same for CancelTask.
    cancel_limit_per_second: int = Field(50, ge=1)
    cancel_limit_burst: int = Field(100, ge=1)

    # TLS on both ports of the edge: the certificate with its chain, and its key, as PEM files.
    # Empty: plain text.
    tls_cert_file: Path | None = None
    tls_key_file: Path | None = Field(None, validate_default=True)
    # When set, callers of gRPC need a certificate that one of these authorities has signed.
    tls_client_ca_file: Path | None = None

    # Memory that a program of the stack may use before it is killed and restarted.
    program_memory_mb: int = Field(default_factory=_program_memory_mb, ge=256)
    # Connections to the database, a program.
    pool_size: int = Field(10, ge=1)
    # Where this program serves its metrics, on loopback; 0: nowhere. `up` gives the workers the
    # ports from here on, and the fleet controller the one behind theirs.
    metrics_port: int = Field(0, ge=0, le=65535)
    # Where traces are sent, by OTLP over HTTP; empty: nowhere. OpenTelemetry itself reads the other
    # standard variables (OTEL_…).
    otel_exporter_otlp_endpoint: str = ""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    # A program's log: the size at which it is rotated, and the number of files, the current one
    # included.
    log_max_bytes: int = Field(16 * 1024 * 1024, ge=64 * 1024)
    log_files: int = Field(5, ge=1, le=100)

    # The run of the stack, set by `up` for its programs. Pods of other runs have ended.
    run_id: str = Field("standalone", pattern=r"^[A-Za-z0-9_-]{1,64}$")
    # For tests: where files arm the points of crash_points.py. None, as ever in production: there
    # are no such points.
    crash_points_dir: Path | None = None

    @field_validator("state_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.absolute()

    @field_validator("tls_cert_file", "tls_key_file", "tls_client_ca_file", mode="before")
    @classmethod
    def _absent(cls, value: object) -> object:
        return value or None

    @field_validator("tls_key_file")
    @classmethod
    def _with_certificate(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if (value is None) != (info.data.get("tls_cert_file") is None):
            raise ValueError("TLS_CERT_FILE and TLS_KEY_FILE are set together or not at all")
        return value

    @field_validator("tls_client_ca_file")
    @classmethod
    def _with_tls(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and info.data.get("tls_cert_file") is None:
            raise ValueError(
                "needs TLS_CERT_FILE and TLS_KEY_FILE: without TLS nobody shows a certificate"
            )
        return value

    @property
    def rest_url(self) -> str:
        """REST through the edge."""
        return f"{'https' if self.tls_cert_file else 'http'}://{self.listen_host}:{self.rest_port}"

    @property
    def worker_addresses(self) -> list[str]:
        """host:port of every worker."""
        return [f"{self.listen_host}:{self.server_port + index}" for index in range(self.workers)]

    @property
    def logs_dir(self) -> Path:
        """The folder of the programs' log files."""
        return self.state_dir / "logs"

    @property
    def signing_key_path(self) -> Path:
        """The control plane's private key, as a JWK; agents get only its public half."""
        return self.state_dir / "control-plane.jwk"

    @property
    def jwks_source(self) -> str:
        """Where session tokens' keys are."""
        return self.jwks or str(self.state_dir / "demo-jwks.json")

    @classmethod
    def read(cls) -> Self:
        """From the environment. Raises pydantic.ValidationError, which names each variable that is
        wrong.
        """
        return cls()
