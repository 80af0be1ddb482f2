"""Sign-in of the console with an OpenID Connect provider: authorization code flow with PKCE.

Envoy's OAuth2 filter runs the flow and keeps the tokens in encrypted cookies that scripts cannot
read. It sends the access token to the workers, which check it as they check every session token.

The cookies are accepted only in requests from the console itself. Browsers state where a request
comes from (Sec-Fetch-Site), and a page cannot change that. So no other page can make calls with a
user's cookies, not even a page of the same domain, which SameSite would allow.
"""

import base64
import hashlib
import json
import ssl
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from evershell.app.settings import Settings
from evershell.core.errors import OperatorError
from evershell.stack.envoy.external_cluster import external_cluster
from evershell.stack.envoy.header import header

_FILTER = "envoy.filters.http.oauth2"
_CLUSTER = "identity_provider"
_SIGN_IN_PATH = "/console/sign-in"
_SIGN_OUT_PATH = "/console/sign-out"
# The provider must allow this path at the edge's address as a redirect URI.
_CALLBACK_PATH = "/console/signed-in"
# Tells the console whether there is a provider.
_DESCRIPTION_PATH = "/console/sign-in.json"
_MUTATION = "type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3"
_TYPES = "type.googleapis.com/envoy.extensions.filters.http.oauth2.v3"
_COOKIES = {
    "bearer_token": "evershell-access",
    "oauth_hmac": "evershell-session",
    "oauth_expires": "evershell-expires",
    "id_token": "evershell-id",
    "refresh_token": "evershell-refresh",
    "oauth_nonce": "evershell-nonce",
    "code_verifier": "evershell-verifier",
}
# The provider redirects back from another site. These two cookies must be sent even then.
_LAX = ("oauth_nonce", "code_verifier")
_TIMEOUT = "5s"
# An element of the HTTP filters. The routes configure it.
FILTER_ELEMENT = {"name": _FILTER, "typed_config": {"@type": f"{_TYPES}.OAuth2"}}
# Turns the filter off for the pages that the edge serves itself. A user whose session is over needs
# these pages to sign in.
WITHOUT_SESSION = {
    _FILTER: {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": True}
}


@dataclass(frozen=True, kw_only=True)
class Provider:
    """The edge's client at the provider, and the endpoints of the provider."""

    client_id: str
    client_secret: str = field(repr=False)
    authorization_url: str
    token_url: str
    # The provider's URL that ends a session; empty if the provider has none.
    end_session_url: str = ""
    # The scheme with which browsers reach the edge.
    public_scheme: str = "http"

    def cluster(self) -> dict[str, Any]:
        """The cluster of the token endpoint."""
        ca_file = ssl.get_default_verify_paths().cafile or ""
        return external_cluster(_CLUSTER, self.token_url, ca_file, max_requests=100)

    def secrets(self) -> list[dict[str, Any]]:
        """The secrets that the configuration of the filter names.

        All edges with the same client have the same keys for the cookies.
        """
        key = hashlib.sha256(f"evershell cookies\n{self.client_secret}".encode()).digest()
        values = {
            f"{_CLUSTER}_client": {"inline_string": self.client_secret},
            f"{_CLUSTER}_cookies": {"inline_bytes": base64.b64encode(key).decode()},
        }
        return [
            {"name": name, "generic_secret": {"secret": value}} for name, value in values.items()
        ]

    def routes(self, filters: dict[str, Any]) -> list[dict[str, Any]]:
        """Routes that begin and end a session, and a route that tells the console their paths.

        `filters` configures the HTTP filters of routes that Envoy answers itself.
        """
        configs = {
            # A link from another site bypasses the filter and does not begin a session.
            _SIGN_IN_PATH: self._config(passing={"exact": "cross-site"}),
            _CALLBACK_PATH: self._config(),
            # A link from another site, or from another host of this site, bypasses the filter and
            # does not end a session.
            _SIGN_OUT_PATH: self._config(passing={"suffix": "-site"}),
        }
        to_console = [
            {
                "match": {"path": path},
                "direct_response": {"status": 303},
                "response_headers_to_add": [header("location", "/console")],
                "typed_per_filter_config": filters | {_FILTER: config} | _to_console(path),
            }
            for path, config in configs.items()
        ]
        paths = {"sign_in": _SIGN_IN_PATH, "sign_out": _SIGN_OUT_PATH}
        return [*to_console, description(paths, filters)]

    def session(self) -> dict[str, Any]:
        """The filter for all other routes: a request with the cookies gets the access token.

        A request is left as it is if it has no such cookies, if it has an authorization header, or
        if it does not come from a page of this origin. A request whose session is over is answered
        with 401.
        """
        # Browsers remove the cookie of the session when its access token expires. The cookie of the
        # refresh token, with which the session is renewed, lasts longer.
        cookies = self._cookies()
        names = f"{cookies['oauth_hmac']}|{cookies['refresh_token']}"
        cookie = {"safe_regex": {"regex": f".*({names})=.*"}}
        config = self._config()
        config["config"] |= {
            "pass_through_matcher": [
                {"name": "authorization", "present_match": True},
                _unless("cookie", cookie),
                _unless("sec-fetch-site", {"exact": "same-origin"}),
                # If the request has several values of the header, one matching value is enough.
                # These two therefore also match a request with `same-origin` and another value.
                {"name": "sec-fetch-site", "string_match": {"suffix": "-site"}},
                {"name": "sec-fetch-site", "string_match": {"exact": "none"}},
            ],
            "deny_redirect_matcher": [{"name": ":path", "string_match": {"prefix": "/"}}],
        }
        return {_FILTER: config}

    def _cookies(self) -> dict[str, str]:
        """The names of the cookies. With https, a prefix keeps other hosts from setting them."""
        prefix = "__Host-" if self.public_scheme == "https" else ""
        return {kind: f"{prefix}{name}" for kind, name in _COOKIES.items()}

    def _scopes(self) -> list[str]:
        """The scopes that the query of the authorization endpoint names."""
        return parse_qs(urlsplit(self.authorization_url).query).get("scope", ["openid"])[0].split()

    def _config(self, *, passing: dict[str, str] | None = None) -> dict[str, Any]:
        """The filter's configuration for a route.

        Requests whose sec-fetch-site matches `passing` bypass the filter.
        """
        from_other = [{"name": "sec-fetch-site", "string_match": passing}] if passing else []
        here = f"{self.public_scheme}://%REQ(:authority)%"
        end = {"end_session_endpoint": self.end_session_url} if self.end_session_url else {}
        return {
            "@type": f"{_TYPES}.OAuth2PerRoute",
            "config": {
                "token_endpoint": {"uri": self.token_url, "cluster": _CLUSTER, "timeout": _TIMEOUT},
                "authorization_endpoint": self.authorization_url,
                **end,
                "post_logout_redirect_uri": {"uri": f"{here}/console"},
                "credentials": {
                    "client_id": self.client_id,
                    "token_secret": {"name": f"{_CLUSTER}_client"},
                    "hmac_secret": {"name": f"{_CLUSTER}_cookies"},
                    "cookie_names": self._cookies(),
                },
                "redirect_uri": f"{here}{_CALLBACK_PATH}",
                "original_request_uri": here,
                "redirect_path_matcher": {"path": {"exact": _CALLBACK_PATH}},
                "signout_path": {"path": {"exact": _SIGN_OUT_PATH}},
                "pass_through_matcher": from_other,
                # They replace the `scope` of the authorization endpoint.
                "auth_scopes": self._scopes(),
                "forward_bearer_token": True,
                "use_refresh_token": True,
                "cookie_configs": {
                    f"{name}_cookie_config": {"same_site": "LAX" if name in _LAX else "STRICT"}
                    for name in _COOKIES
                },
            },
        }


def description(content: dict[str, str], filters: dict[str, Any]) -> dict[str, Any]:
    """The route that tells the console how to sign in. Without a provider, `content` is empty."""
    return {
        "match": {"path": _DESCRIPTION_PATH},
        "direct_response": {"status": 200, "body": {"inline_string": json.dumps(content)}},
        "response_headers_to_add": [header("content-type", "application/json")],
        "typed_per_filter_config": filters,
    }


def _to_console(path: str) -> dict[str, Any]:
    """Sends a user who comes back from the provider to the console.

    The filter would send them to the URL in `state`, which is not authenticated.
    """
    if path != _CALLBACK_PATH:
        return {}
    location = header("location", "/console") | {"append_action": "OVERWRITE_IF_EXISTS"}
    return {
        "envoy.filters.http.header_mutation": {
            "@type": f"{_MUTATION}.HeaderMutationPerRoute",
            "mutations": {"response_mutations": [{"append": location}]},
        }
    }


def _unless(name: str, match: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "string_match": match,
        "invert_match": True,
        "treat_missing_header_as_empty": True,
    }


def provider_of(settings: Settings) -> Provider | None:
    """The provider that the settings name; None if there is none. Raises OperatorError."""
    if not settings.oidc_client_id:
        return None
    assert settings.oidc_client_secret_file is not None, "the settings are validated"
    try:
        secret = settings.oidc_client_secret_file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise OperatorError(f"OIDC_CLIENT_SECRET_FILE cannot be read: {error}") from error
    public = settings.public_rest_url or settings.rest_url
    return Provider(
        client_id=settings.oidc_client_id,
        client_secret=secret,
        authorization_url=settings.oidc_authorization_url,
        token_url=settings.oidc_token_url,
        end_session_url=settings.oidc_end_session_url,
        public_scheme=urlsplit(public).scheme,
    )
