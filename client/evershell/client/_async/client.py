"""The client, with its calls about the organization and its workspaces."""

from evershell.client._async.tasks import AsyncTaskCalls
from evershell.client._async.webhooks import AsyncWebhooks


class AsyncClient(AsyncTaskCalls):
    """Calls an evershell service over gRPC, within one event loop.

        async with AsyncClient("https://acme.evershell.ai", "sk_…") as client:
            await client.cancel("ws_…", reason="it has gone wrong")

    A call is repeated if the service is unavailable or has refused the call because of a rate
    limit, after the pause that the service asks for. The calls `stop_workspace`, `resume_workspace`
    and `release`, and a cancellation without a task id, are never repeated, because a repeat could
    have another effect.

    Args:
        url: Where the service listens for gRPC: `https://host:port`, or `http://host:port` for
            plain text. Without a scheme, only a loopback address is plain text. Default: the
            variable EVERSHELL_URL.
        credential: An API key, a session token, or a callable that returns one, also as an
            awaitable, and is called before each call. Default: the variable EVERSHELL_API_KEY.
        timeout: The limit of each call including its retries, in seconds or as a timedelta.
        timeouts: Like `timeout`, for single methods, by name: `{"CancelTask": 2}`.
        max_retries: How often a call that may be repeated is repeated; 0 for never.
        metadata: Headers that are added to each call. The service ignores names that it does not
            know.
        on_answer: Called with the Answer to each attempt of a call, even a failed attempt, but not
            for `watch`. The Answer has the request id and the metadata. It must not block or raise.
        ca_file: A PEM file with the authorities to trust instead of the system's.
        cert_file: A PEM file with a client certificate, for a service that asks for one.
        key_file: The PEM file with the key of the client certificate.
        interceptors: Client interceptors of grpc.aio, for example to measure calls.

    Raises:
        ConfigurationError: The address or the credential is missing, or an option is not valid.
    """

    @property
    def webhooks(self) -> AsyncWebhooks:
        """The calls about webhooks."""
        return AsyncWebhooks(self)
