"""The settings of webhooks."""

from collections.abc import Sequence
from ipaddress import ip_network

from pydantic import field_validator
from pydantic_settings import BaseSettings

from evershell.core.addresses import Network


def _networks(text: str) -> Sequence[Network]:
    """Parses the networks, which are separated by commas. Raises ValueError."""
    return [ip_network(each.strip()) for each in text.split(",") if each.strip()]


class RoomSettings(BaseSettings):
    """A part of the settings of the server (app/settings.py)."""

    webhook_allowed_networks: str = ""
    """Networks in which [webhooks](webhooks.md#which-addresses-are-called) may be called although
    their addresses are not public, separated by commas, for example `10.1.0.0/16,fd00::/8`.
    Loopback addresses in them may also be called by http."""

    @field_validator("webhook_allowed_networks")
    @classmethod
    def _of_networks(cls, value: str) -> str:
        _networks(value)
        return value

    @property
    def webhook_networks(self) -> Sequence[Network]:
        """The networks of WEBHOOK_ALLOWED_NETWORKS."""
        return _networks(self.webhook_allowed_networks)
