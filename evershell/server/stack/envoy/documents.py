"""Routes with which the edge itself serves the OpenAPI document and a page for it."""

from importlib import metadata
from pathlib import Path
from typing import Any

from evershell.server.stack.envoy.files import edge_file

# The package is used only for the static files of Swagger UI.
SWAGGER_UI = Path(str(metadata.distribution("swagger-ui-py").locate_file("swagger_ui/static")))

# Maps each path to its file and content type.
FILES = {
    "/openapi.yaml": (edge_file("openapi.yaml"), "application/yaml"),
    "/docs": (edge_file("docs", "index.html"), "text/html; charset=utf-8"),
    "/docs/start.js": (edge_file("docs", "start.js"), "text/javascript; charset=utf-8"),
    "/docs/swagger-ui-bundle.js": (
        SWAGGER_UI / "swagger-ui-bundle.js",
        "text/javascript; charset=utf-8",
    ),
    "/docs/swagger-ui.css": (SWAGGER_UI / "swagger-ui.css", "text/css; charset=utf-8"),
    "/docs/favicon.png": (SWAGGER_UI / "favicon-32x32.png", "image/png"),
}
# Envoy refuses to start if a file exceeds this size.
MAX_FILE_BYTES = max(file.stat().st_size for file, _ in FILES.values())

HEADERS = {
    # Browsers do not load the page again within minutes, and notice a new release after that.
    "cache-control": "public, max-age=300",
    # Allows only the page's own files and this API, and no frames. `data:` is for the images in
    # Swagger UI's style sheet.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
}
METHODS = ("GET", "HEAD")


def routes(filters: dict[str, Any]) -> list[dict[str, Any]]:
    """Envoy's routes for FILES. Methods other than GET and HEAD are answered with 405.

    `filters` configures the HTTP filters of these routes.
    """
    answers = [
        answer
        for path, (file, kind) in FILES.items()
        for answer in (_file(path, file, kind), _method_not_allowed(path))
    ]
    return [answer | {"typed_per_filter_config": filters} for answer in answers]


def _file(path: str, file: Path, kind: str) -> dict[str, Any]:
    method = {"name": ":method", "string_match": {"safe_regex": {"regex": "|".join(METHODS)}}}
    answer = {"status": 200, "body": {"filename": str(file)}}
    return _answer({"path": path, "headers": [method]}, answer, HEADERS | {"content-type": kind})


def _method_not_allowed(path: str) -> dict[str, Any]:
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
    }
