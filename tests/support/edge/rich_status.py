"""Reads the metadata and the rich status of a failed gRPC call."""

from typing import Any

from google.rpc import error_details_pb2
from grpc_status import rpc_status

from evershell.api.status import DOMAIN


def metadata_of(error: Any) -> dict[str, Any]:
    """The initial and trailing metadata of an error."""
    return dict(error.initial_metadata() or ()) | dict(error.trailing_metadata() or ())


def rich_status_of(
    error: Any,
) -> tuple[Any, error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo]:
    """Returns the status of an error from Envoy, and its ErrorInfo and RetryInfo.

    Checks what all errors from Envoy have in common. Raises AssertionError.
    """
    status = rpc_status.from_call(error)
    assert status is not None
    assert error.details() == status.message
    assert metadata_of(error)["x-request-id"]
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in status.details:
        assert detail.Unpack(info) or detail.Unpack(retry)
    assert info.domain == DOMAIN
    return status, info, retry
