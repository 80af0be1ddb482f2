"""The environments of the stack's programs: which settings and secrets each of them gets."""

import os

from pydantic import SecretStr

from evershell.app.settings import Settings
from evershell.stack.envoy.config import Edge

# The prefix of OpenTelemetry's own variables. They may hold a credential for the collector.
_TRACING = "OTEL_"


def service_settings(settings: Settings) -> Settings:
    """The settings of the workers and of the controllers.

    Other machines can reach only the edge, unless the pods are on Kubernetes and call the workers.
    """
    if settings.on_kubernetes:
        return settings
    return settings.model_copy(update={"listen_host": "127.0.0.1"})


def render_environment(settings: Settings) -> dict[str, str]:
    """The environment of a program that only writes the configuration of Envoy."""
    return _environment(settings) | _metrics_address(settings, settings.workers + 1)


def worker_environment(settings: Settings, index: int) -> dict[str, str]:
    """The environment of a worker.

    It has the key of the agents' model only on Kubernetes, where agents get the key from a worker.
    """
    own = _service_environment(settings) | _metrics_address(settings, index)
    if not settings.on_kubernetes:
        own.pop("OPENAI_API_KEY", None)
    return own


def fleet_environment(settings: Settings, index: int) -> dict[str, str]:
    """The environment of a fleet controller.

    Unless the pods are on Kubernetes, the controller gives agents the key of their model. The
    second controller's metrics port follows the edge's metrics port.
    """
    place = settings.workers + 2 * index
    return _service_environment(settings) | _metrics_address(settings, place)


def edge_metrics_port(settings: Settings) -> int:
    """The port of the edge's metrics; 0 if there are no metrics.

    This port follows the metrics ports of the workers and of the first controller.
    """
    return settings.metrics_port and settings.metrics_port + settings.workers + 1


def foreign_environment() -> dict[str, str]:
    """What Envoy and PostgreSQL get of this process's environment.

    They get no setting of this service and no variable of OpenTelemetry.
    """
    own = {name.upper() for name in Settings.model_fields}
    return {
        name: value
        for name, value in os.environ.items()
        if name.upper() not in own and not name.startswith(_TRACING)
    }


def edge_environment(edge: Edge) -> dict[str, str]:
    """The environment of Envoy, with the headers for the collector of spans."""
    own = edge.collector.environment() if edge.collector is not None else {}
    return foreign_environment() | own


def _service_environment(settings: Settings) -> dict[str, str]:
    return _environment(service_settings(settings))


def _environment(settings: Settings) -> dict[str, str]:
    """The environment of this process, with the settings.

    A SecretStr would be formatted as asterisks, so secret settings are inherited instead.
    """
    values = settings.model_dump(exclude_none=True).items()
    own = {name.upper(): str(value) for name, value in values if not isinstance(value, SecretStr)}
    # Only migrations use the role of MIGRATION_DATABASE_URL.
    return {**os.environ, **own, "MIGRATION_DATABASE_URL": ""}


def _metrics_address(settings: Settings, place: int) -> dict[str, str]:
    """The address of the metrics of a program, whose port comes so far after the first one."""
    host, colon, _ = settings.metrics_address.rpartition(":")
    return {"METRICS_ADDRESS": f"{host}:{settings.metrics_port + place}"} if colon else {}
