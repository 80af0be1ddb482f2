"""The claims of the tokens between the control plane and its agents.

Both kinds are JWTs (RFC 7519) that the control plane signs with its Ed25519 key (RFC 8037, RFC
9864). server/auth/pod_tokens.py mints them.
"""

ISSUER = "evershell"
# The audience of a runtime token, with which an agent calls RuntimeService.
RUNTIME_AUDIENCE = "runtime"
# The audience of a signal token, with which the control plane calls AgentService.
AGENT_AUDIENCE = "agent"
# The lifetime of a signal token.
SIGNAL_TOKEN_SECONDS = 60
