"""The answer to a CORS preflight."""

# A browser asks for permission (CORS preflight) before it sends a token to another site. Any site
# may call, with its own token, so the answer is the same for every path and method: a script can
# then read the 404 or 405 of a call that has no route. Envoy's own CORS filter skips the paths that
# the edge answers itself.
PREFLIGHT = [
    {"name": ":method", "string_match": {"exact": "OPTIONS"}},
    {"name": "access-control-request-method", "present_match": True},
]
PREFLIGHT_ANSWER = {
    "access-control-allow-methods": "DELETE, GET, HEAD, PATCH, POST, PUT",
    # After the first two, in this order: headers for tracing libraries, for EventSource libraries
    # that resume a stream, for callers that choose a request id or an idempotency key, for gRPC-Web
    # and for A2A.
    "access-control-allow-headers": (
        "authorization, content-type, traceparent, tracestate, last-event-id, x-request-id, "
        "idempotency-key, grpc-timeout, x-grpc-web, x-user-agent, a2a-version, a2a-extensions"
    ),
    "access-control-max-age": "600",
}
