"""The files of the edge, and the routes for the files that browsers load.

These are the OpenAPI document, a page for it, and the console.
"""

from importlib import metadata, resources
from pathlib import Path
from typing import Any

from evershell.stack.envoy.header import header


def edge_file(*names: str) -> Path:
    """The path of a file of the package `evershell.edge`.

    In a checkout, the package has a folder in envoy/ and one in gen/.
    """
    resource = resources.files("evershell.edge")
    for name in names:
        resource = resource / name
    return Path(str(resource))


# From the package swagger-ui-py, only the static files are used.
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
    "/console": (edge_file("console", "index.html"), "text/html; charset=utf-8"),
    "/console/console.js": (edge_file("console", "console.js"), "text/javascript; charset=utf-8"),
    "/console/console.css": (edge_file("console", "console.css"), "text/css; charset=utf-8"),
    "/console/icon.svg": (edge_file("console", "icon.svg"), "image/svg+xml"),
    "/console/licenses.txt": (edge_file("console", "LICENSES.txt"), "text/plain; charset=utf-8"),
}
# Envoy refuses to start if a file exceeds this size.
MAX_FILE_BYTES = max(file.stat().st_size for file, _ in FILES.values())

HEADERS = {
    # Browsers load the page again only after five minutes, and then notice a new release.
    "cache-control": "public, max-age=300",
    # Allows only the page's own files and this API, and no frames. `data:` is for the images in
    # Swagger UI's style sheet.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    # For browsers that do not know `frame-ancestors`.
    "x-frame-options": "DENY",
    # Pages of other sites get no reference to the window of one of these pages.
    "cross-origin-opener-policy": "same-origin",
}
# The console's policy is stricter, because the console never makes HTML from strings.
CONSOLE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
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
    headers = HEADERS | {"content-type": kind}
    if path.startswith("/console"):
        headers["content-security-policy"] = CONSOLE_POLICY
    return _answer({"path": path, "headers": [method]}, answer, headers)


def _method_not_allowed(path: str) -> dict[str, Any]:
    return _answer({"path": path}, {"status": 405}, {"allow": ", ".join(METHODS)})


def _answer(
    match: dict[str, Any], answer: dict[str, Any], headers: dict[str, str]
) -> dict[str, Any]:
    return {
        "match": match,
        "direct_response": answer,
        "response_headers_to_add": [header(name, value) for name, value in headers.items()],
    }
