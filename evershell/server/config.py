"""The settings: one frozen object, read from the environment once and validated then."""

import os
import shlex
from pathlib import Path
from typing import Literal, Self

import psutil
from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

# The longest timeout or lease.
_DAY_SECONDS = 86_400


def _program_memory_mb() -> int:
    """The default of PROGRAM_MEMORY_MB.

    It is several times what a program needs, but at most a quarter of the machine's memory.
    """
    return max(256, min(1024, psutil.virtual_memory().total // 2**20 // 4))


class Settings(BaseSettings):
    """The settings. Each is read from the environment variable of its name in capitals.

    README.md has a table of them.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    # The folder of all files that outlive a run.
    state_dir: Path = Path(".state")
    # A URL postgresql://…, for TCP or a socket. If empty, the embedded PostgreSQL is used.
    database_url: str = ""

    # The URL of the same database for migrations and `audit prune`, with the role that owns the
    # tables. If empty, DATABASE_URL, whose role then owns them.
    migration_database_url: str = ""
    # `audit prune`, and each start of the stack, removes older months of the audit log; 0 keeps
    # everything.
    audit_retention_days: int = Field(400, ge=0, le=36_500)

    # The edge's port for REST.
    rest_port: int = Field(8080, ge=1, le=65535)
    # The edge's port for gRPC.
    grpc_port: int = Field(8081, ge=1, le=65535)
    # The port of the first worker. The other workers use the ports after it.
    server_port: int = Field(50051, ge=1, le=65535)
    workers: int = Field(2, ge=1, le=64)
    # The address on which the edge and the workers listen.
    listen_host: str = "127.0.0.1"

    # `scripted`, or `openai:<model>`.
    model: str = "scripted"
    # The program that is started as the agent of each workspace, with its arguments, in the syntax
    # of a shell. If empty, the agent of this package. docs/agents.md says what it has to do.
    agent_command: str = ""
    # The base URL of an OpenAI-compatible endpoint: the part before `/chat/completions`. If empty,
    # OpenAI's own.
    openai_base_url: str = ""
    # May be empty if the endpoint does not ask for a key.
    openai_api_key: SecretStr = SecretStr("")
    model_timeout_seconds: float = Field(120.0, gt=0, le=_DAY_SECONDS)
    tool_timeout_seconds: float = Field(600.0, gt=0, le=_DAY_SECONDS)
    # An agent that does not renew its lease for this long is lost.
    lease_seconds: float = Field(30.0, ge=1, le=_DAY_SECONDS)

    # Whether pods run in a sandbox. `auto` uses one if it works on this machine; `sandbox` does not
    # start without one.
    pod_isolation: Literal["auto", "sandbox", "none"] = "auto"
    # The limits of a tool in a sandbox: the memory of each of its processes, the number of its
    # processes, and the size of each file that it writes.
    tool_memory_mb: int = Field(2048, ge=64)
    tool_processes: int = Field(512, ge=16)
    tool_file_mb: int = Field(4096, ge=1)
    # The network of a tool in a sandbox: none, or that of this machine.
    tool_network: Literal["none", "host"] = "none"

    # The issuer and the audience of session tokens.
    jwt_issuer: str = "https://auth.evershell.ai"
    jwt_audience: str = "evershell"
    # The JWK set of the issuer: a file or an http(s) URL. If empty, that of the demo.
    jwks: str = ""
    # If set, a request's host must be `<org slug>.<public domain>` of its credential's
    # organization.
    public_domain: str = ""

    # Whether the calls of each credential are limited. Each worker keeps its own count, so all
    # workers together serve up to WORKERS times as many. A call within the limit is never refused.
    rate_limit: bool = True
    rate_limit_per_second: int = Field(100, ge=1)
    rate_limit_burst: int = Field(200, ge=1)
    # The same for CancelTask.
    cancel_limit_per_second: int = Field(50, ge=1)
    cancel_limit_burst: int = Field(100, ge=1)

    # TLS on both ports of the edge: the certificate with its chain, and its key, as PEM files. If
    # empty, plain text.
    tls_cert_file: Path | None = None
    tls_key_file: Path | None = Field(None, validate_default=True)
    # If set, callers of gRPC need a certificate that one of these authorities has signed.
    tls_client_ca_file: Path | None = None

    # TLS between the control plane and its agents. The certificates need no settings: see
    # auth/agent_certificates.py.
    agent_tls: bool = False
    # With AGENT_TLS, the port on which the first worker serves agents. The other workers use the
    # ports after it.
    runtime_port: int = Field(50151, ge=1, le=65535)

    # A program of the stack that uses more memory is killed and restarted.
    program_memory_mb: int = Field(default_factory=_program_memory_mb, ge=256)
    # The number of connections to the database for each program.
    pool_size: int = Field(10, ge=1)
    # The port, on loopback, on which this program serves its metrics; 0 for none. `up` gives the
    # workers the ports from this one on, and the fleet controller the port after theirs.
    metrics_port: int = Field(0, ge=0, le=65535)
    # The endpoint for traces, by OTLP over HTTP. If empty, there are no traces. OpenTelemetry
    # itself reads the other standard variables (OTEL_…).
    otel_exporter_otlp_endpoint: str = ""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    # A program's log is rotated at this size. The number of files includes the current one.
    log_max_bytes: int = Field(16 * 1024 * 1024, ge=64 * 1024)
    log_files: int = Field(5, ge=1, le=100)

    # The run of the stack, set by `up` for its programs. Pods of other runs have ended.
    run_id: str = Field("standalone", pattern=r"^[A-Za-z0-9_-]{1,64}$")
    # Only for tests: the folder of the files that arm the points of crash_points.py.
    crash_points_dir: Path | None = None

    @field_validator("state_dir")
    @classmethod
    def _resolve(cls, value: Path) -> Path:
        # The agents of a stack are found by this path in their environment, so a path through a
        # link has to give the same value.
        return Path(os.path.realpath(value))

    @field_validator("agent_command")
    @classmethod
    def _as_a_shell_reads_it(cls, value: str) -> str:
        # Raises ValueError.
        shlex.split(value)
        return value

    @field_validator("tls_cert_file", "tls_key_file", "tls_client_ca_file", mode="before")
    @classmethod
    def _none_if_empty(cls, value: object) -> object:
        return value or None

    @field_validator("tls_key_file")
    @classmethod
    def _with_certificate(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if (value is None) != (info.data.get("tls_cert_file") is None):
            raise ValueError("TLS_CERT_FILE and TLS_KEY_FILE must be set together")
        return value

    @field_validator("tls_client_ca_file")
    @classmethod
    def _with_tls(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and info.data.get("tls_cert_file") is None:
            raise ValueError("needs TLS_CERT_FILE and TLS_KEY_FILE")
        return value

    @property
    def rest_url(self) -> str:
        """The edge's URL for REST."""
        return f"{'https' if self.tls_cert_file else 'http'}://{self.listen_host}:{self.rest_port}"

    @property
    def worker_addresses(self) -> list[str]:
        """host:port of each worker."""
        return [f"{self.listen_host}:{self.server_port + index}" for index in range(self.workers)]

    @property
    def runtime_addresses(self) -> list[str]:
        """host:port of each worker, for agents."""
        if not self.agent_tls:
            return self.worker_addresses
        return [f"{self.listen_host}:{self.runtime_port + index}" for index in range(self.workers)]

    @property
    def logs_dir(self) -> Path:
        """The folder of the programs' log files."""
        return self.state_dir / "logs"

    @property
    def signing_key_path(self) -> Path:
        """The control plane's private key, as a JWK. Agents get only secrets derived from it."""
        return self.state_dir / "control-plane.jwk"

    @property
    def jwks_source(self) -> str:
        """The file or URL of the keys of session tokens."""
        return self.jwks or str(self.state_dir / "demo-jwks.json")

    @classmethod
    def read(cls) -> Self:
        """Reads the environment.

        Raises pydantic.ValidationError, which names each variable that is not valid.
        """
        return cls()
