"""What callers send and get: the calls, the outcomes, who may call, the errors."""

from tests.faults.mutations.mutants import Rule, rule

_API = "server/evershell/api/"
_AUTH = "server/evershell/auth/"
_CORE = "server/evershell/core/"
_STORE = "server/evershell/store/"
_EDGE = "envoy/evershell/edge/"
_DECIDE = f"{_STORE}functions/cancellation_outcome.sql"
_RECORD = f"{_STORE}functions/record_cancellation.sql"
_CASES = "tests/wire/edge/test_cases.py"

CALLING: tuple[Rule, ...] = (
    rule(
        "the checks of a cancellation are made in order",
        "tests/unit/core/test_cancel_task.py tests/contracts/test_store_cancellations.py",
        (
            f"{_CORE}cancel_task.py",
            'raise errors.task_not_found(request.workspace_id, request.task_id or "")',
            "raise recorded.workspace.refusal()",
        ),
        (_DECIDE, "WHEN p_names_task AND t.id IS NULL THEN", "WHEN false THEN"),
    ),
    rule(
        "a task that has ended is already_finished in every state of its workspace",
        "tests/contracts/test_store_cancellations.py",
        (
            _DECIDE,
            "            THEN 'already_finished'\n",
            "            AND w.status IN ('idle', 'busy') THEN 'already_finished'\n",
        ),
    ),
    rule(
        "the state of the workspace decides whether a cancellation is recorded",
        "tests/unit/core/test_cancel_task.py tests/contracts/test_store_cancellations.py",
        (
            f"{_CORE}cancel_task.py",
            "            raise recorded.workspace.refusal()\n",
            "            return Outcome.NO_ACTIVE_TASK\n",
        ),
        (
            _DECIDE,
            "WHEN w.status IN ('stopping', 'stopped') THEN",
            "WHEN w.status = 'stopped' THEN",
        ),
        (
            f"{_CORE}workspace.py",
            'slug = "workspace_stopped"\n                problem = "is stopped',
            'slug = "workspace_failed"\n                problem = "is stopped',
        ),
    ),
    rule(
        "wait and force_after have bounds",
        "tests/unit/protos/test_limits.py tests/unit/core/test_cancel_task.py",
        (
            f"{_CORE}cancel_task.py",
            "0 <= self.wait_seconds <= MAX_WAIT_SECONDS",
            "0 <= self.wait_seconds",
        ),
        (
            f"{_CORE}cancel_task.py",
            "not 0 <= force_after_seconds <= MAX_FORCE_AFTER_SECONDS",
            "not 0 <= force_after_seconds",
        ),
    ),
    rule(
        "an id has 1 to 128 characters, and no text has NUL",
        "tests/unit/core/test_validation.py",
        (f"{_CORE}validation.py", "_ID.fullmatch(value)", "_ID.match(value)"),
        (f"{_CORE}validation.py", 'elif "\\0" in value:', "elif False:"),
        (f"{_CORE}validation.py", "elif len(value) > max_characters:", "elif False:"),
    ),
    rule(
        "an unknown field is refused",
        "tests/wire/api/test_rest_body.py tests/wire/api/test_field_table.py",
        (f"{_API}rest_body.py", 'problems.add(path, "unknown field")', "pass"),
        (
            f"{_API}interceptors/reading.py",
            "if is_strict and _has_unknown_fields(call.request):",
            "if False:",
        ),
    ),
    rule(
        "a body names the workspace of the path, and no empty task id",
        "tests/wire/api/test_rest_body.py tests/wire/api/test_field_table.py",
        (f"{_API}rest_body.py", "and in_path and in_path != value", "and False"),
        (f"{_API}rest_body.py", "if not value and (rule.is_id or", "if not value and (False or"),
    ),
    rule(
        "each method has a size limit",
        "tests/wire/api/test_reading.py",
        (
            f"{_API}interceptors/reading.py",
            "return self._limits.get(method.path, MAX_MESSAGE_BYTES)",
            "return MAX_MESSAGE_BYTES",
        ),
    ),
    rule(
        "a credential is checked before the request is read",
        "tests/wire/api/test_chain.py tests/wire/api/test_authentication.py "
        "tests/wire/api/test_reading.py",
        (
            f"{_API}chain.py",
            "        authentication,  # before",
            "        Reading(shares), authentication,  # before",
        ),
    ),
    rule(
        "the scope is checked before a large or slow body is read",
        "tests/wire/api/test_reading.py",
        (
            f"{_API}interceptors/reading.py",
            "                self._check(caller)\n",
            "                pass\n",
        ),
    ),
    rule(
        "a large or slow body has a place, or is refused at once",
        "tests/wire/api/test_reading.py",
        (
            f"{_API}interceptors/reading.py",
            "0 if self.is_large else _QUICK_SECONDS",
            "_QUICK_SECONDS",
        ),
        (f"{_API}interceptors/reading.py", "self._places.free(self._taken)", "pass"),
        (
            f"{_API}interceptors/reading.py",
            "            self.arrival.reschedule(now)\n",
            "            pass\n",
        ),
        (
            f"{_API}interceptors/shares.py",
            "Kind.FIRST_BODIES if is_first else Kind.BODIES",
            "Kind.BODIES",
        ),
    ),
    rule(
        "a credential and an organization have shares of each kind of call",
        "tests/wire/api/test_shares.py",
        (
            f"{_API}interceptors/shares.py",
            "held.get(of_credential, 0) >= share.credential",
            "False",
        ),
        (f"{_API}interceptors/shares.py", "held.get(of_org, 0) >= share.organization", "False"),
        (f"{_API}interceptors/shares.py", 'held.get("", 0) >= share.total', "False"),
        (
            f"{_API}interceptors/shares.py",
            "                places.free(taken)",
            "                pass",
        ),
        (
            f"{_API}interceptors/shares.py",
            "        return Kind.FIRST\n",
            "        return Kind.OTHERS\n",
        ),
    ),
    rule(
        "organizations take turns in lists",
        "tests/unit/store/test_pool.py tests/wire/api/test_authentication.py",
        (f"{_STORE}pool.py", "calling_org.get()", '""'),
        (
            f"{_API}interceptors/authentication.py",
            "        calling_org.set(call.caller.org_id)\n",
            "",
        ),
    ),
    rule(
        "a refused cancellation without a task id gets no time",
        "tests/wire/api/test_rate_limits.py",
        (
            f"{_API}interceptors/refusals.py",
            "        return errors.rate_limited(problem, None, **facts)\n",
            "        return errors.rate_limited(problem, retry_after_seconds, **facts)\n",
        ),
        (
            f"{_API}interceptors/refusals.py",
            "        call.request = await _request(call, method)\n",
            "        pass\n",
        ),
    ),
    rule(
        "a workspace has one task at a time",
        "tests/unit/core/test_task_lifecycle.py tests/unit/core/test_tasks.py",
        (f"{_CORE}task_lifecycle.py", "    if locked.task is not None:\n", "    if False:\n"),
    ),
    rule(
        "a stop cancels the task, and forces it after a grace",
        "tests/unit/core/test_workspace_lifecycle.py tests/unit/core/test_workspaces.py",
        (
            f"{_CORE}workspace_lifecycle.py",
            "force_at=now + timedelta(seconds=STOP_GRACE_SECONDS)",
            "force_at=None",
        ),
        (
            f"{_CORE}workspace_lifecycle.py",
            "    cancelled = request_cancel(locked, forced)\n",
            "    cancelled = unchanged(locked)\n",
        ),
    ),
    rule(
        "after a restart of the stack a task of before has ended, in a new epoch",
        "tests/unit/core/test_workspace_lifecycle.py tests/unit/fleet/test_controller.py",
        (
            f"{_CORE}workspace_lifecycle.py",
            "change = end_open_task(locked, _RUN_ENDED, now, work_stopped=work_stopped)",
            "change = unchanged(locked)",
        ),
    ),
    rule(
        "lists are newest first, and a token belongs to its list",
        "tests/contracts/test_store_lists.py tests/unit/core/test_validation.py "
        "tests/wire/api/test_pages.py",
        (
            f"{_STORE}scans.sql",
            "OR last_id IS NOT NULL\nORDER BY scan_key DESC, scan_id DESC",
            "OR last_id IS NOT NULL\nORDER BY scan_key, scan_id",
        ),
        (
            f"{_CORE}validation.py",
            "before_id is None or _page_token(before_id, listed) != page_token",
            "False",
        ),
    ),
    rule(
        "zeros are shown, names stay as in the protos",
        f"tests/wire/edge/test_rest.py {_CASES}",
        (
            f"{_EDGE}envoy.yaml",
            "always_print_primitive_fields: true",
            "always_print_primitive_fields: false",
        ),
        (
            f"{_EDGE}envoy.yaml",
            "preserve_proto_field_names: true",
            "preserve_proto_field_names: false",
        ),
    ),
    rule(
        "the query and the body of a call cannot name what its path names",
        _CASES,
        (
            f"{_EDGE}envoy.yaml",
            "reject_binding_body_field_collisions: true",
            "reject_binding_body_field_collisions: false",
        ),
        (
            f"{_EDGE}envoy.yaml",
            "reject_unknown_query_parameters: true",
            "reject_unknown_query_parameters: false",
        ),
    ),
    rule(
        "a success has the status of its call, 200 if a wait saw the end",
        f"{_CASES} tests/stack/test_wait.py",
        (
            f"{_EDGE}envelope.lua",
            'status = status or handle:metadata():get("success_status")',
            "status = status",
        ),
        (
            f"{_API}workspace_servicer.py",
            "if decoded.wait_seconds is not None and result.saw_end:",
            "if False:",
        ),
        (f"{_EDGE}envelope.lua", "status = status or handle", "status = handle"),
    ),
    rule(
        "a watch resumes after any seq, and says when it is quiet",
        "tests/unit/core/test_watch_events.py tests/contracts/test_store_lists.py "
        "tests/wire/api/test_event_stream.py",
        (f"{_STORE}events.sql", "AND seq > %(after_seq)s", "AND seq >= %(after_seq)s"),
        (f"{_CORE}watch_events.py", "if after_seq > last_seq:", "if False:"),
        (f"{_CORE}watch_events.py", "if after_seq > last_seq:", "if after_seq >= last_seq > 0:"),
        (
            f"{_CORE}event_feeds.py",
            "if quiet_seconds >= HEARTBEAT_SECONDS:",
            "if quiet_seconds >= 4 * HEARTBEAT_SECONDS:",
        ),
        (f"{_API}event_stream.py", 'else f"id: {id_}\\n"', 'else ""'),
        (f"{_API}event_stream.py", "    return int(last_id)\n", "    return after\n"),
        (f"{_API}event_stream.py", 'data=f"retry: {_RETRY_MS}\\n".encode()', 'data=b": \\n"'),
    ),
    rule(
        "a stream of an organization has each event that its caller may read",
        "tests/unit/core/test_watch_organization.py tests/contracts/test_store_event_log.py",
        (
            f"{_CORE}event_feeds.py",
            "if self._message is None and not self._has_missed:\n            self._message",
            "if self._message is None:\n            self._message",
        ),
        (
            f"{_CORE}event_feeds.py",
            "                feed.miss(self._position)\n",
            "                pass\n",
        ),
        (
            f"{_CORE}watch_organization.py",
            '(caller.user_id or "") if permission.own_only else None',
            "None",
        ),
        (
            f"{_STORE}event_log.py",
            "entries, until if is_whole else entries[-1].event.position",
            "entries, until",
        ),
        (f"{_STORE}event_log.py", "if found.server != self._server:", "if False:"),
    ),
    rule(
        "an error within a stream is its last message",
        "tests/wire/api/test_errors.py tests/wire/api/test_event_stream.py",
        (
            f"{_API}interceptors/errors.py",
            "if call.has_streamed and (message",
            "if False and (message",
        ),
    ),
    rule(
        "only the SHA-256 of a key is looked up, and a revoked key stops working",
        "tests/unit/auth/test_api_keys.py",
        (
            f"{_AUTH}api_keys.py",
            "return hashlib.sha256(secret.encode()).digest()",
            "return secret.encode()",
        ),
        (f"{_AUTH}api_keys.py", "if key is None or key.revoked_at is not None:", "if key is None:"),
        (f"{_AUTH}api_keys.py", "\nCACHE_SECONDS = 5.0\n", "\nCACHE_SECONDS = 60.0\n"),
        (f"{_AUTH}api_keys.py", "_RANDOM_BYTES = 32", "_RANDOM_BYTES = 8"),
    ),
    rule(
        "a template gives its scopes",
        "tests/wire/api/test_access.py tests/unit/auth/test_api_keys.py "
        "tests/wire/api/test_authentication.py",
        (
            f"{_CORE}caller.py",
            'KeyTemplate.READ_ONLY: frozenset({"workspace:read",',
            'KeyTemplate.READ_ONLY: frozenset({"workspace:write", "workspace:read",',
        ),
    ),
    rule(
        "a session token has the right issuer, audience and organization, and has not expired",
        "tests/unit/auth/test_sessions.py",
        (
            f"{_AUTH}session_tokens.py",
            'iss={"essential": True, "value": issuer}',
            'iss={"essential": True}',
        ),
        (
            f"{_AUTH}session_tokens.py",
            'aud={"essential": True, "value": audience}',
            'aud={"essential": True}',
        ),
        (f"{_AUTH}session_tokens.py", 'exp={"essential": True},', ""),
        (f"{_AUTH}session_tokens.py", 'org_id={"essential": True},', ""),
        (f"{_AUTH}session_tokens.py", '"RS256", "ES256",', '"RS256", "HS256", "none", "ES256",'),
        (
            f"{_AUTH}session_tokens.py",
            "if not jws.validate_compact(signed, keys, ALGORITHMS):",
            "if False:",
        ),
    ),
    rule(
        "each call needs its scope",
        "tests/wire/api/test_access.py",
        (
            f"{_CORE}cancel_task.py",
            'caller.permission("workspace:write")',
            'caller.permission("workspace:read")',
        ),
        (
            f"{_CORE}workspaces.py",
            'caller.permission("workspace:write", "tasks:write")',
            'caller.permission("workspace:write")',
        ),
        (
            f"{_CORE}audit.py",
            'caller.permission("audit:read")',
            'caller.permission("workspace:read")',
        ),
        (f"{_CORE}hold.py", '_SCOPE = "org:hold"\n', '_SCOPE = "workspace:write"\n'),
    ),
    rule(
        ":own applies only to the creator, and never to a key",
        "tests/unit/core/test_caller.py tests/contracts/test_store_cancellations.py "
        "tests/wire/api/test_access.py",
        (f"{_CORE}caller.py", "user_id is not None and", ""),
        (f"{_CORE}caller.py", "creator_id == user_id", "True"),
        (
            _DECIDE,
            "WHEN p_own_only AND (w.created_by_user_id = p_user_id) IS NOT TRUE THEN",
            "WHEN p_own_only AND w.created_by_user_id <> p_user_id THEN",
        ),
    ),
    rule(
        "another organization's workspace looks as if it did not exist",
        "tests/unit/core/test_caller.py tests/contracts/test_store_cancellations.py",
        (f"{_CORE}caller.py", " or workspace.org_id != self.caller.org_id:", ":"),
        (
            _RECORD,
            "WHERE id = p_request.workspace_id AND org_id = p_request.org_id\n"
            "        FOR UPDATE SKIP LOCKED",
            "WHERE id = p_request.workspace_id\n        FOR UPDATE SKIP LOCKED",
        ),
    ),
    rule(
        "a refusal lists the scopes that would suffice",
        "tests/unit/core/test_caller.py tests/wire/api/test_access.py",
        (
            f"{_CORE}caller.py",
            "raise errors.permission_denied(message, required)",
            "raise errors.permission_denied(message, [])",
        ),
    ),
    rule(
        "401 says Bearer",
        f"tests/wire/api/test_errors.py tests/wire/api/test_authentication.py {_CASES}",
        (f"{_API}interceptors/errors.py", 'if failure.slug == "unauthenticated":', "if False:"),
        (f"{_EDGE}envelope.lua", '  if status == "401" then\n', "  if false then\n"),
    ),
    rule(
        "a credential is good for the host of its organization",
        "tests/unit/auth/test_authenticator.py",
        (
            f"{_AUTH}authenticator.py",
            'host.partition(":")[0].lower() != slug + self._suffix',
            "False",
        ),
    ),
    rule(
        "a stream ends when its credential is no longer good",
        "tests/wire/api/test_stream_credentials.py",
        (
            f"{_API}interceptors/authentication.py",
            "return checked_again if method.is_stream or method.path == WAITS else authenticated",
            "return authenticated",
        ),
    ),
    rule(
        "an agent's token opens its workspace in its epoch, and nothing else",
        "tests/unit/auth/test_pod_tokens.py tests/wire/api/test_authentication.py",
        (f"{_AUTH}pod_tokens.py", "{workspace_id} {epoch}", "{workspace_id}"),
        (
            f"{_API}interceptors/authentication.py",
            "RUNTIME_SERVICE: self._authenticate_agent",
            "RUNTIME_SERVICE: self._authenticate_caller",
        ),
        (
            f"{_AUTH}pod_tokens.py",
            "        if minute not in accepted_minutes(now):\n",
            "        if False:\n",
        ),
    ),
    rule(
        "an agent takes only calls of the control plane",
        "tests/unit/agents/test_signal_tokens.py",
        (
            "server/evershell/agents/service.py",
            'await self._verify(token if scheme == "Bearer" else "", context)',
            "pass",
        ),
        (
            "server/evershell/agents/service.py",
            "await self._verify(signal.token, context)",
            "pass",
        ),
        (
            "server/evershell/agents/service.py",
            "await self._admit(context)\n        return current_iteration",
            "return current_iteration",
        ),
    ),
    rule(
        "gRPC errors have their standard details",
        "tests/wire/api/test_errors.py",
        (
            f"{_API}status.py",
            "error_details_pb2.PreconditionFailure(violations=[violation])",
            "error_details_pb2.PreconditionFailure()",
        ),
        (f"{_API}status.py", 'if "retry_after_seconds" in facts:', "if False:"),
        (f"{_API}status.py", "        error_details_pb2.RequestInfo(request_id=request_id),\n", ""),
    ),
    rule(
        "an unexpected failure says nothing of its cause",
        "tests/wire/api/test_errors.py",
        (
            f"{_API}interceptors/errors.py",
            "errors.internal(repeat_advice(method.path, call))",
            'errors.internal(repr(__import__("sys").exc_info()[1]))',
        ),
    ),
    rule(
        "an error says x-should-retry: false where a repeat could have another effect",
        f"tests/wire/api/test_errors.py tests/wire/api/test_calls.py {_CASES}",
        (
            f"{_API}interceptors/errors.py",
            "if status.RULES[failure.slug].no_retry or repeat_advice(method.path, call):",
            "if status.RULES[failure.slug].no_retry:",
        ),
        (
            f"{_API}interceptors/errors.py",
            "errors.unavailable(repeat_advice(method.path, call))",
            "errors.unavailable()",
        ),
        (f"{_EDGE}envelope.lua", "  if repeatable == false then\n", "  if false then\n"),
    ),
    rule(
        "nothing repeats a cancellation without a task id",
        "tests/wire/edge/test_wire.py tests/wire/edge/test_grpc.py "
        "tests/wire/edge/long/test_workers.py",
        (
            f"{_EDGE}envoy.yaml",
            "retry_on: connect-failure,refused-stream",
            "retry_on: 5xx,unavailable",
        ),
    ),
    rule(
        "the edge chooses the request id, and every answer has it",
        f"{_CASES} tests/wire/api/test_calls.py tests/wire/api/test_errors.py",
        (
            f"{_EDGE}envoy.yaml",
            "preserve_external_request_id: false\n                # The routes",
            "preserve_external_request_id: true\n                # The routes",
        ),
        (
            f"{_API}interceptors/request_log.py",
            'call.context.set_trailing_metadata((("x-request-id", call.request_id),))',
            "pass",
        ),
    ),
    rule(
        "cancellations have buckets of their own, and each credential its own",
        "tests/wire/api/test_rate_limits.py",
        (
            f"{_API}interceptors/rate_limits.py",
            "            buckets, subject = self._cancels,",
            "            buckets, subject = self._calls,",
        ),
        (
            f"{_API}interceptors/rate_limits.py",
            "self._throttled.limit(caller.key)",
            "self._throttled.limit(caller.org_id)",
        ),
    ),
    rule(
        "a key answers a repeat, and refuses another request",
        "tests/unit/core/test_idempotency.py tests/contracts/test_store_idempotency_keys.py",
        (
            f"{_CORE}idempotency.py",
            ".fingerprint != call.fingerprint:",
            ".fingerprint != call.fingerprint and False:",
        ),
        (
            f"{_STORE}idempotency_keys.sql",
            "WHERE stored.called_at <= %(expires_before)s",
            "WHERE stored.called_at IS DISTINCT FROM %(expires_before)s",
        ),
        (f"{_CORE}change.py", "return self.called_at - KEY_KEPT", "return self.called_at"),
    ),
    rule(
        "a file with credentials is private",
        "tests/stack/test_make_run.py",
        ("server/evershell/stack/ready.py", "0o600", "0o644"),
    ),
)
