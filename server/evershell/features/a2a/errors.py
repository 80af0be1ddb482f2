"""Encodes a failure as A2A does: as google.rpc.Status, and as the JSON of that status for HTTP.

error.proto says which error type of A2A a slug has, if any.
"""

import json
from http import HTTPStatus

from google.protobuf.json_format import MessageToDict
from google.rpc import code_pb2, error_details_pb2, status_pb2

from evershell.api import status
from evershell.core.errors import Failure

# The domain of A2A's own error types (A2A, section 10.6).
DOMAIN = "a2a-protocol.org"


def rich_status(failure: Failure, request_id: str) -> status_pb2.Status:
    """The status with its details.

    If the slug has an error type of A2A, the ErrorInfo names that type, and its metadata has the
    slug. There is only one ErrorInfo, because the HTTP client of A2A reads only the first. Other
    errors keep their own ErrorInfo.
    """
    rich = status.rich_status(failure, request_id)
    error_type = status.RULES[failure.slug].a2a
    if error_type:
        own = error_details_pb2.ErrorInfo()
        rich.details[0].Unpack(own)
        facts = {"slug": failure.slug, **own.metadata}
        rich.details[0].Pack(
            error_details_pb2.ErrorInfo(reason=error_type, domain=DOMAIN, metadata=facts)
        )
    return rich


def http_status(failure: Failure) -> int:
    """The HTTP status of the failure's slug, except that FAILED_PRECONDITION becomes 400.

    A2A (section 5.4) and google.rpc.Code map FAILED_PRECONDITION to 400.
    """
    rule = status.RULES[failure.slug]
    if rule.grpc == code_pb2.FAILED_PRECONDITION:
        return HTTPStatus.BAD_REQUEST
    return rule.http


def status_json(failure: Failure, request_id: str) -> str:
    """The body of an HTTP error (A2A, section 11.6), as ASCII, so that a trailer can hold it."""
    rich = rich_status(failure, request_id)
    error = {
        "code": http_status(failure),
        "status": code_pb2.Code.Name(rich.code),
        "message": rich.message,
        "details": [MessageToDict(detail) for detail in rich.details],
    }
    return json.dumps({"error": error}, separators=(",", ":"))


ERROR_FORM = status.ErrorForm(rich_status, status_json, http_status)
