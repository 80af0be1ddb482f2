"""The settings: one frozen object, read from the environment once and validated then."""

import os
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, TypeAlias

import psutil
from pydantic import (
    Field,
    SecretStr,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)
from pydantic_settings import SettingsConfigDict

from evershell.features import registry
from evershell.fleet.kubernetes.objects import PodSettings

# The longest timeout or lease.
_DAY_SECONDS = 86_400
_MAX_PORT = 65_535
# With AGENT_TLS, a worker serves agents on this port after its own.
AGENT_PORT_DISTANCE = 100
# The default of RATE_LIMIT.
_RATE_LIMIT = 100


def _program_memory_mb() -> int:
    """The default of PROGRAM_MEMORY_MB.

    1024 MB are several times what a program needs. The default is less if that would be more than a
    quarter of the machine's memory.
    """
    return max(256, min(1024, psutil.virtual_memory().total // 2**20 // 4))


class ServerSettings(PodSettings):
    """The settings, without the settings of rooms (features/).

    Each setting is read from the environment variable with its name in capitals. `make gen` copies
    its docstring into docs/configuration.md. A setting that only one module of a lower layer uses
    is declared in that module, like the fields of PodSettings.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    state_dir: Path = Path(".state")
    """The folder of everything that is kept between runs. A second stack needs another folder and
    other ports."""
    database_url: str = ""
    """`postgresql://…`, PostgreSQL 14 or newer, over TCP or a socket. If empty, the embedded
    PostgreSQL. Each stack needs its own database, which is empty at first; a database with tables
    of another application is refused."""
    database_session_url: str = ""
    """If `DATABASE_URL` leads to a [pooler](database.md#a-pooler), the URL of the same database at
    PostgreSQL itself, with the same role. Each program uses it for one connection or two. If empty,
    `DATABASE_URL`."""
    migration_database_url: str = ""
    """The URL of the same database with the role that owns the tables, for migrations. The
    role of `DATABASE_URL` then cannot change or remove entries of the audit log. If empty,
    `DATABASE_SESSION_URL` or `DATABASE_URL`, whose role then owns the tables."""
    audit_retention_days: int = Field(400, ge=0, le=36_500)
    """Months of the audit log that ended longer ago are removed at each start of the stack and by
    `migrate`. 0 keeps everything."""
    task_retention_days: int = Field(0, ge=0, le=36_500)
    """Tasks that ended longer ago are [removed](lifetime.md#retention), with their events. 0 keeps
    everything."""

    rest_port: int = Field(8080, ge=1, le=_MAX_PORT)
    """The port for REST, through Envoy."""
    grpc_port: int = Field(8081, ge=1, le=_MAX_PORT)
    """The port for gRPC, through Envoy."""
    server_port: int = Field(50051, ge=1, le=_MAX_PORT)
    """The port of the first worker of the control plane. The other workers use the next ports. With
    `AGENT_TLS`, each worker also serves agents on the port that is 100 higher than its own."""
    workers: int = Field(2, ge=1, le=64)
    """The number of workers."""
    listen_host: str = "127.0.0.1"
    """The IPv4 address on which Envoy and the workers listen. With `up` and local pods, the workers
    listen on 127.0.0.1, because no other machine calls them."""

    tls_cert_file: Path | None = None
    """TLS on both ports of Envoy: the certificate with its chain, as a PEM file. If empty, the
    ports use plain text."""
    tls_key_file: Path | None = Field(None, validate_default=True)
    """The key of this certificate, as a PEM file."""
    tls_client_ca_file: Path | None = None
    """If set, callers of gRPC need a certificate that one of these authorities has signed."""
    agent_tls: bool = False
    """TLS between the control plane and its agents, in both directions. Its certificates need no
    settings."""

    jwt_issuer: str = "https://auth.evershell.ai"
    """The issuer of session tokens."""
    jwt_audience: str = "evershell"
    """The audience of session tokens."""
    jwks: str = ""
    """The keys of the issuer: a JWK set, as a file or an http(s) URL. If empty, the keys of the
    demo."""
    public_domain: str = ""
    """If set, the host of a request must be `<org slug>.<public domain>`, with the organization of
    its credential. If empty, any host is accepted."""

    public_rest_url: str = ""
    """The base URL of REST as [agent cards](a2a.md#agent-cards) name it. `{org}` stands for the
    slug of the organization. If empty, the URL of this machine."""
    public_grpc_address: str = ""
    """The address of gRPC as agent cards name it: `host:port`. If empty, the address of this
    machine."""

    oidc_client_id: str = ""
    """The client id of the [console](console.md#sign-in) at an OpenID Connect provider. If empty,
    users of the console sign in with a token."""
    oidc_client_secret_file: Path | None = None
    """A file with the secret of this client."""
    oidc_authorization_url: str = ""
    """The authorization endpoint of the provider, including the query parameters that it needs,
    such as the `resource` of [RFC 8707](https://www.rfc-editor.org/rfc/rfc8707). Its `scope` names
    the scopes, for example `…?scope=openid+offline_access`; by default, `openid`."""
    oidc_token_url: str = ""
    """The token endpoint of the provider."""
    oidc_end_session_url: str = ""
    """The end session endpoint of the provider. If empty, signing out ends only the session of the
    console."""

    rate_limit: int = Field(
        _RATE_LIMIT, ge=0, json_schema_extra={"type": ["integer", "boolean", "string"]}
    )
    """How many [calls per second](calls.md#rate-limits) each credential may make, with bursts of
    twice as many. CancelTask, CancelTasks, HoldOrg and ReleaseOrg are counted separately, and
    together may make half as many. `off` or 0: no limit; otherwise at least 2."""

    model: str = "scripted"
    """The model of the agents: `scripted`, or `openai:<model>` at any OpenAI-compatible endpoint.
    Answers are streamed if the endpoint supports it."""
    openai_base_url: str = ""
    """The base URL of the endpoint: the part before `/chat/completions`. If empty, OpenAI's own."""
    openai_api_key: SecretStr = SecretStr("")
    """The key for the endpoint. May be empty if the endpoint needs none, or if the key is in
    `AGENT_KEYS_FILE`."""
    prices_file: Path | None = None
    """A file with prices of models, which replace or extend the prices of the release: see
    [costs](costs.md#prices)."""
    model_timeout_seconds: float = Field(120.0, gt=0, le=_DAY_SECONDS)
    """The time limit of one model call. It ensures that every cancelled task ends in bounded time.
    """
    tool_timeout_seconds: float = Field(600.0, gt=0, le=_DAY_SECONDS)
    """The time limit of one tool call, for the same purpose."""
    lease_seconds: float = Field(30.0, ge=12, le=_DAY_SECONDS)
    """An agent that sends no heartbeat for this long counts as lost. The least value is 12, because
    a worker that is cut off can hold the lock of a workspace for up to 6 s."""
    agent_command: str = ""
    """The program that is started as the agent of each workspace, with its arguments, in the syntax
    of a shell. If empty, the agent of this package. [Cancel the agent you
    have](your-agent.md) says what it can be."""
    agent_keys_file: Path | None = None
    """A file with the keys of agents: a JSON object that maps names to texts. It is read whenever
    an agent starts, so keys can be [rotated](operating.md#rotate-secrets) without a restart. Its
    `OPENAI_API_KEY` replaces the setting with this name. [Keys](your-agent.md#keys) says how an
    agent of your own gets them."""

    runtime_service: str = ""
    """`host:port` of the workers as agents reach them; several are separated by commas. Required
    for pods on Kubernetes. If empty, the workers are on the agents' machine."""
    pod_start_seconds: float = Field(120.0, ge=1, le=_DAY_SECONDS)
    """An agent that has not registered after this time has failed to start. An agent whose process
    ends has failed at once. Importing a framework takes long on a busy machine. On Kubernetes, the
    time includes finding a node and pulling the image."""
    idle_suspend_minutes: float = Field(0.0, ge=0, le=60 * 24 * 365)
    """A workspace that has been idle for this long is [suspended](lifetime.md#idle-workspaces): its
    pod ends, its files stay, and the next task wakes it. 0 for never. Set it only after all workers
    and controllers are of a version that has this setting."""
    pod_isolation: Literal["auto", "sandbox", "none"] = "auto"
    """Whether pods run in a [sandbox](operating.md#pods). If a sandbox does not work, the service
    refuses to start, except that `up` only warns if this is `auto` and `LISTEN_HOST` is a loopback
    address. It does not apply to Kubernetes, where each pod is a container."""
    tool_memory_mb: int = Field(2048, ge=64)
    """In a sandbox, the memory of all processes of a tool call together. Their files in `/tmp`, and
    also their files in `/dev/shm`, are limited to the same size, but to at most 256 MiB."""
    tool_network: Literal["none", "host"] = "none"
    """In a sandbox, the network of a tool: none, or the network of this machine."""

    metrics_address: str = ""
    """`host:port` at which the first worker serves its [metrics](monitoring.md#metrics), for
    example `127.0.0.1:9100`. The other workers use the next ports, then the first fleet controller,
    Envoy, and the second fleet controller. If empty, there are no metrics."""
    otel_exporter_otlp_endpoint: str = ""
    """Where [spans](monitoring.md#traces) are sent, by OTLP over HTTP. If empty, nowhere.
    OpenTelemetry reads its other variables (`OTEL_…`) itself."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Lines below this level are not logged."""
    program_memory_mb: int = Field(default_factory=_program_memory_mb, ge=256)
    """A program of the stack that uses more memory is killed and restarted. The default is 1024 or
    a quarter of the machine's memory, whichever is less, but at least 256."""
    pool_size: int = Field(10, ge=1)
    """The maximum size of the pool of database connections of each worker and fleet controller."""

    run_id: str = Field("standalone", pattern=r"^[A-Za-z0-9_-]{1,64}$")
    """The id of the run of the stack, which `up` sets for its programs. Pods of other runs count as
    ended."""

    @field_validator("state_dir")
    @classmethod
    def _resolve(cls, value: Path) -> Path:
        # Sandboxes hide this folder, and need its real path to do so.
        return Path(os.path.realpath(value))

    @field_validator("rate_limit", mode="before")
    @classmethod
    def _on_or_off(cls, value: object) -> object:
        # In YAML, `off` is `false`.
        words = {"off": 0, "false": 0, "on": _RATE_LIMIT, "true": _RATE_LIMIT}
        return words.get(str(value).lower(), value)

    @field_validator("rate_limit")
    @classmethod
    def _with_half_for_cancellations(cls, value: int) -> int:
        if value == 1:
            raise ValueError("must be `off` or at least 2")
        return value

    @field_validator("metrics_address")
    @classmethod
    def _as_host_and_port(cls, value: str) -> str:
        form = re.fullmatch(r"(\[[^\]]+\]|[^:]+):(\d{1,5})", value)
        if value and not (form and 0 < int(form[2]) <= _MAX_PORT):
            raise ValueError("must be host:port")
        return value

    @field_validator("agent_command")
    @classmethod
    def _as_a_shell_reads_it(cls, value: str) -> str:
        # Raises ValueError if the quotes in the command do not match.
        shlex.split(value)
        return value

    @model_validator(mode="after")
    def _with_a_port_for_each_worker(self) -> Self:
        last = self.server_port + self.workers - 1 + self.agent_tls * AGENT_PORT_DISTANCE
        if last > _MAX_PORT:
            raise ValueError(f"SERVER_PORT is too high: the last port of a worker would be {last}")
        return self

    @model_validator(mode="after")
    def _found_in_pods(self) -> Self:
        if not self.on_kubernetes:
            for word in shlex.split(self.agent_command)[1:]:
                path = Path(word)
                if path.is_file() and not path.is_absolute():
                    raise ValueError(
                        f"AGENT_COMMAND names {word} by a relative path, but agents start in the "
                        f"folders of their workspaces. Name it {path.absolute()}."
                    )
        return self

    @model_validator(mode="after")
    def _complete_for_kubernetes(self) -> Self:
        if self.on_kubernetes and not self.runtime_service:
            raise ValueError("POD_IMAGE needs RUNTIME_SERVICE")
        return self

    @model_validator(mode="after")
    def _complete_for_sign_in(self) -> Self:
        if self.oidc_client_id:
            for name in ("oidc_client_secret_file", "oidc_authorization_url", "oidc_token_url"):
                if not getattr(self, name):
                    raise ValueError(f"OIDC_CLIENT_ID needs {name.upper()}")
            for name in ("oidc_authorization_url", "oidc_token_url", "oidc_end_session_url"):
                url = getattr(self, name)
                if url and not url.startswith(("https://", "http://")):
                    raise ValueError(f"{name.upper()} is not an http(s) URL: {url!r}")
        return self

    @field_validator(
        "tls_cert_file",
        "tls_key_file",
        "tls_client_ca_file",
        "oidc_client_secret_file",
        "agent_keys_file",
        "prices_file",
        "pod_template_file",
        mode="before",
    )
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
    def edge_host(self) -> str:
        """The address at which this machine reaches the edge."""
        return "127.0.0.1" if self.listen_host == "0.0.0.0" else self.listen_host  # noqa: S104

    @property
    def rest_url(self) -> str:
        return f"{'https' if self.tls_cert_file else 'http'}://{self.edge_host}:{self.rest_port}"

    @property
    def metrics_host(self) -> str:
        return self.metrics_address.rpartition(":")[0].strip("[]")

    @property
    def metrics_port(self) -> int:
        """The port of METRICS_ADDRESS; 0 if there are no metrics."""
        return int(self.metrics_address.rpartition(":")[2] or 0)

    @property
    def session_url(self) -> str:
        """The URL of the database for connections that need their own session."""
        return self.database_session_url or self.database_url

    @property
    def owner_url(self) -> str:
        """The URL of the database for migrations."""
        return self.migration_database_url or self.session_url

    @property
    def worker_addresses(self) -> list[str]:
        """host:port of each worker."""
        return self._addresses(self.server_port)

    @property
    def runtime_addresses(self) -> list[str]:
        """host:port of each worker, for agents."""
        if self.runtime_service:
            return [each.strip() for each in self.runtime_service.split(",")]
        if not self.agent_tls:
            return self.worker_addresses
        return self._addresses(self.server_port + AGENT_PORT_DISTANCE)

    def _addresses(self, first_port: int) -> list[str]:
        return [f"{self.listen_host}:{first_port + index}" for index in range(self.workers)]

    @property
    def logs_dir(self) -> Path:
        return self.state_dir / "logs"

    @property
    def signing_key_path(self) -> Path:
        """The file of the control plane's private key. Agents get only secrets derived from it."""
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


if TYPE_CHECKING:
    Settings: TypeAlias = ServerSettings
else:
    Settings = create_model(
        "Settings", __base__=(*registry.settings(), ServerSettings), __module__=__name__
    )
    Settings.__doc__ = "The settings, with the settings of the rooms."
