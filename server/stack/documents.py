"""The OpenAPI document and the page that shows it, as routes with which the edge answers by itself."""

from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# Swagger UI as its package carries it; the package's own code is not needed.
SWAGGER_UI = Path(str(metadata.distribution("swagger-ui-py").locate_file("swagger_ui/static")))
PAGE = ROOT / "envoy" / "docs"

# What is served: path → file, content type.
FILES = {
    "/openapi.yaml": (ROOT / "gen" / "openapi.yaml", "application/yaml"),
    "/docs": (PAGE / "index.html", "text/html; charset=utf-8"),
    "/docs/start.js": (PAGE / "start.js", "text/javascript; charset=utf-8"),
    "/docs/swagger-ui-bundle.js": (
        SWAGGER_UI / "swagger-ui-bundle.js",
        "text/javascript; charset=utf-8",
    ),
    "/docs/swagger-ui.css": (SWAGGER_UI / "swagger-ui.css", "text/css; charset=utf-8"),
    "/docs/favicon.png": (SWAGGER_UI / "favicon-32x32.png", "image/png"),
}
# Envoy reads each file when it starts, up to this size.
MAX_FILE_BYTES = max(file.stat().st_size for file, _ in FILES.values())

HEADERS = {
    # Soon enough for a new release, and no second download while one reads.
    "cache-control": "public, max-age=300",
    # The page's own files and this API, nothing else; nobody may frame it. Swagger UI has small
    # pictures in its style sheet.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
}
METHODS = ("GET", "HEAD")

# For routes with which the edge answers by itself: the filters that read bodies would find fault
# with the request first.
WITHOUT_BODY_FILTERS = {
    name: {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": True}
    for name in ("envoy.filters.http.filter_chain", "envoy.filters.http.grpc_json_transcoder")
}


def routes() -> list[dict[str, Any]]:
    """Of each path: the file, then 405 for any other method than GET and HEAD."""
    return [
        route
        for path, (file, kind) in FILES.items()
        for route in (_file(path, file, kind), _refusal(path))
    ]


def _file(path: str, file: Path, kind: str) -> dict[str, Any]:
    method = {"name": ":method", "string_match": {"safe_regex": {"regex": "|".join(METHODS)}}}
    answer = {"status": 200, "body": {"filename": str(file)}}
    return _answer({"path": path, "headers": [method]}, answer, HEADERS | {"content-type": kind})


def _refusal(path: str) -> dict[str, Any]:
    return _answer({"path": path}, {"status": 405}, {"allow": ", ".join(METHODS)})


def _answer(
    match: dict[str, Any], answer: dict[str, Any], headers: dict[str, str]
) -> dict[str, Any]:
    return {
        "match": match,
        "direct_response": answer,
        "response_headers_to_add": [
            {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
            for name, value in headers.items()
        ],
        "typed_per_filter_config": WITHOUT_BODY_FILTERS,
    }
