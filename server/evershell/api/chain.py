"""The interceptors of the gRPC server, in order."""

from collections.abc import Sequence

from evershell.api.interceptors.admission import Admission
from evershell.api.interceptors.auditing import Auditing
from evershell.api.interceptors.authentication import Authentication
from evershell.api.interceptors.errors import Errors
from evershell.api.interceptors.interceptor import Interceptor
from evershell.api.interceptors.rate_limits import RateLimits
from evershell.api.interceptors.reading import Reading
from evershell.api.interceptors.request_log import RequestLog
from evershell.api.interceptors.shares import Shares


def interceptors(
    request_log: RequestLog,
    admission: Admission,
    authentication: Authentication,
    rate_limits: RateLimits | None = None,
    traced_calls: Interceptor | None = None,
    auditing: Auditing | None = None,
) -> Sequence[Interceptor]:
    """The interceptors, outermost first. An interceptor that is None is left out."""
    shares = Shares()
    ordered = [
        request_log,  # outermost: gives every call a request id and a log line, and measures it
        admission,  # before anything that takes time; inside request_log, which counts refusals
        traced_calls,  # inside request_log, which reads the trace; around all that takes time
        auditing,  # around Errors, which sets the outcome that auditing records
        Errors(),  # around everything that can fail; inside request_log, which logs the slug
        authentication,  # before the request is read; servicers need the caller
        rate_limits,  # after authentication, because limits are per credential
        shares,  # after authentication, because shares are per credential and organization
        Reading(shares),  # innermost: a request is read only after all others have admitted it
    ]
    return [interceptor for interceptor in ordered if interceptor is not None]
