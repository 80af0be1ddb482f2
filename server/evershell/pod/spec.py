"""The settings that the controller gives an agent at its start."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSpec:
    """The settings of one agent, as a JSON object on its standard input.

    They are not in the agent's environment, because tools could read it.
    """

    workspace_id: str
    epoch: int
    # The addresses (host:port) at which the agent reaches the workers of the control plane.
    runtime_addresses: list[str]
    # Two secrets in hexadecimal digits (pod/tokens.py). The first one authenticates this agent to
    # the control plane. The second one authenticates the control plane to this agent.
    runtime_secret: str = field(repr=False)
    signal_secret: str = field(repr=False)
    # For TLS, as PEM (pod/tls.py): the agent's certificate and key, and the authority that it
    # trusts. If they are empty, connections use plain text.
    tls_certificate: str = ""
    tls_key: str = field(default="", repr=False)
    tls_trusted: str = ""
    # The directory in which tools run; the working directory by default.
    files_dir: str = ""
    model: str = "scripted"
    openai_base_url: str = ""
    openai_api_key: str = field(default="", repr=False)
    # The keys of a custom agent, by name.
    keys: dict[str, str] = field(default_factory=dict, repr=False)
    model_timeout_seconds: float = 120.0
    tool_timeout_seconds: float = 600.0
    # The path of bwrap, which starts tools in a sandbox. If empty, tools have no sandbox.
    bwrap: str = ""
    # With bwrap: the filter of tool_filter.py, in base64.
    tool_filter: str = ""
    tool_memory_mb: int = 2048
    tool_processes: int = 512
    tool_file_mb: int = 4096
    # Whether tools in a sandbox share the network of the agent.
    tool_has_network: bool = False
    # The agent listens on this address and registers it with the control plane. If `listen_host` is
    # empty, the environment variable POD_IP has the host. Port 0 stands for any free port.
    listen_host: str = "127.0.0.1"
    listen_port: int = 0
    # If set, this spec has no secrets. RuntimeService.Bootstrap returns the complete spec in
    # exchange for this token.
    bootstrap_token: str = field(default="", repr=False)
    # For tests: the folder that arms crash points (crash_points.py). If empty, there are none.
    crash_points_dir: str = ""

    @classmethod
    def read(cls, document: object) -> "PodSpec":
        """Makes the spec from a JSON object. Ignores fields that this version does not know.

        The control plane may be newer than the image of the agent. Raises TypeError if a field is
        missing, or if the document is not an object.
        """
        if not isinstance(document, Mapping):
            raise TypeError("it is not an object")
        known = {each.name for each in fields(cls)}
        return cls(**{name: value for name, value in document.items() if name in known})
