"""The settings of a peer's server, which reads them from its environment."""

from pydantic_settings import BaseSettings


class PeerSettings(BaseSettings):
    """Where the database and the agent are. Each is the environment variable of its name."""

    database_host: str
    database_port: int = 5432
    database_user: str
    database_password: str | None = None
    database_dbname: str
    # As many connections as a worker of this service has.
    pool_size: int
    agent_url: str
    agent_grpc_address: str
    # Only for a peer without a table of keys.
    api_key_sha256: str = ""
