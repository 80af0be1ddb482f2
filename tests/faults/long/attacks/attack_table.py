"""Every attack that is tested, with the test that makes it.

A row names a kind of attack. Its test may make it in many forms. tests/unit/test_attack_table.py
checks that each test exists. A run of the exhaustive tests prints how many attacks of the table it
has made, and how many got through.

test_callers.py makes the attacks of callers on the whole stack, over REST and over gRPC, and
test_agents.py those of agents that were taken over. The other tests add what needs an inside view
(caches, clocks, queues), a stack of its own, or bytes that only one protocol has.
"""

from dataclasses import dataclass

from tests.faults.long.attacks.agent_attacks import ATTACKS as AGENT_ATTACKS
from tests.faults.long.attacks.caller_attacks import AGENT_METHODS, BEYOND_RIGHTS, MESSAGES, SPOOFED
from tests.faults.long.attacks.sandbox_attacks import ATTACKS
from tests.support.edge.refused_cases import BODIES
from tests.support.forgeries import AT_WORKER, FORGED
from tests.support.injections import INJECTIONS, PRINTABLE


@dataclass(frozen=True)
class Row:
    """One attack, and its test: a path below tests/, and the name of a function."""

    group: str
    attack: str
    test: str
    # Whether the test makes many attacks, each of which is a parameter of it.
    is_parameter: bool = False


SESSIONS = "unit/auth/test_sessions.py::"
WRONG_SIGNATURES = "unit/auth/test_wrong_signatures.py::"
KEYS = "unit/auth/test_api_keys.py::"
POD_TOKENS = "unit/auth/test_pod_tokens.py::"
RUNTIME_TOKENS = "unit/agents/test_runtime_tokens.py::"
SIGNALS = "unit/agents/test_signal_tokens.py::"
CALLS = "wire/api/test_authentication.py::"
AGENT_TLS = "wire/api/test_agent_tls.py::"
STACK_TLS = "stack/long/test_agent_tls.py::"
CALLERS = "faults/long/attacks/test_callers.py::"
AGENTS = "faults/long/attacks/test_agents.py::"
FORGERIES = "wire/api/test_forged_credentials.py::"
EDGE = "wire/edge/test_cases.py::test_every_client_gets_the_expected_answer"
RAW_EDGE = "wire/edge/test_cases.py::test_raw_bytes_get_the_expected_answer"
ACCESS = "wire/api/test_access.py::test_a_call_is_allowed_and_recorded_as_the_rules_say"
EVERY_METHOD = "wire/api/test_access.py::test_every_method_is_called_by_every_kind_of_caller"
RUNTIME = "unit/core/test_runtime.py::"
TOOLS = "stack/long/test_attacks_of_tools.py::"
RECORDS = "unit/fleet/test_forged_records.py::"
TEXTS = "wire/api/test_injection.py::"
STORED = "contracts/test_store_texts.py::"

_WRITTEN = {
    "session token": {
        "no algorithm": SESSIONS + "test_a_token_without_an_algorithm_is_refused",
        "HS256 with the public key as the secret": SESSIONS
        + "test_a_token_signed_with_the_public_key_as_a_secret_is_refused",
        "an algorithm that is not allowed": SESSIONS + "test_another_algorithm_is_refused",
        "a swapped signature, changed claims": SESSIONS + "test_a_changed_token_is_refused",
        "a foreign issuer or audience, impossible times, no organization": SESSIONS
        + "test_a_wrong_claim_is_refused",
        "claims that are signed but impossible": CALLS
        + "test_a_signed_token_with_impossible_claims_is_unauthenticated",
        "claims that are not an object": SESSIONS
        + "test_claims_that_are_not_an_object_are_refused",
        "malformed, oversized or deeply nested": SESSIONS + "test_a_malformed_token_is_refused",
        "replay after its expiry": SESSIONS + "test_the_refusal_of_an_expired_token_says_expired",
        "a key that the issuer has withdrawn": "unit/auth/test_jwk_set.py::"
        "test_an_old_set_is_refreshed_so_that_a_withdrawn_key_is_refused",
        "a flood of wrong signatures": WRONG_SIGNATURES
        + "test_wrong_signatures_are_limited_and_known_tokens_are_not",
        "bad tokens that evict a good one": WRONG_SIGNATURES
        + "test_bad_tokens_do_not_evict_a_good_one",
        "a flood of unknown kids": "unit/auth/test_jwk_set.py::"
        "test_unknown_keys_refresh_the_set_at_a_limited_rate",
    },
    "API key": {
        "an unknown key": KEYS + "test_an_unknown_key_is_refused_and_looked_up_once",
        "replay of a revoked key": "stack/test_key_commands.py::"
        "test_a_key_works_at_once_and_its_revocation_reaches_every_worker_and_stream",
        "a stream that outlives its key": "wire/api/test_stream_credentials.py::"
        "test_a_key_that_is_revoked_ends_its_streams_in_band",
        "a stream that outlives its session": "wire/api/test_stream_credentials.py::"
        "test_a_session_that_expires_ends_its_streams",
        "a revoked key that is kept alive by use": KEYS
        + "test_a_revocation_takes_effect_when_the_cache_entry_expires",
        "replay of an expired key": KEYS
        + "test_a_key_is_refused_from_its_expiry_on_also_while_it_is_cached",
        "unknown keys that evict a good one": KEYS + "test_unknown_keys_do_not_evict_a_known_one",
        "a flood of bad credentials": "stack/long/test_strangers.py::"
        "test_resets_bad_credentials_half_messages_and_slow_bodies",
    },
    "header": {
        "no credential, another scheme, an oversized token": "unit/auth/test_authenticator.py::"
        "test_a_value_without_a_bearer_token_is_refused",
        "bad credentials over both protocols": "stack/test_matrix.py::"
        "test_calls_without_an_effect_change_nothing",
        "bad credentials at both services": CALLS
        + "test_a_bad_credential_is_refused_by_both_services",
        "x-evershell-* and x-envoy-* over REST": "wire/edge/test_rest.py::"
        "test_a_caller_cannot_set_internal_headers",
        "x-evershell-* over gRPC": "wire/edge/test_grpc.py::"
        "test_a_caller_cannot_set_internal_metadata",
        "an identity in headers, beside a good credential": FORGERIES
        + "test_a_header_changes_nobodys_identity",
        "a chosen request id": "wire/edge/test_rest.py::test_the_edge_chooses_the_request_id",
        "a forged x-forwarded-for": "wire/api/test_auditing.py::"
        "test_every_allowed_call_leaves_an_entry_with_its_change",
        "the host of another organization": CALLS + "test_a_host_of_another_organization_is_denied",
        "two hosts": FORGERIES + "test_a_repeated_host_is_not_that_of_the_organization",
        "raw bytes: smuggling, NUL, several hosts": RAW_EDGE,
    },
    "access": {
        "random callers, scopes, creators and workspaces": ACCESS,
        "each method across organizations and creators": EVERY_METHOD,
        "a method without a rule": "wire/api/test_access.py::test_each_method_has_a_rule",
        "each method without a credential": EVERY_METHOD,
        "writes with a key that only reads": EVERY_METHOD,
        "the workspace of another creator": "stack/test_matrix.py::"
        "test_calls_without_an_effect_change_nothing",
        "the audit log of another organization": "stack/long/test_audit.py::"
        "test_an_unknown_workspace_and_another_organization_are_on_record",
        "another workspace in the body or the query": EDGE,
        "a change or removal of audit entries": "unit/store/test_audit.py::"
        "test_the_role_of_the_service_only_adds_and_reads_entries",
    },
    "agent's token": {
        "an agent's token at a public method": CALLS
        + "test_an_agents_token_opens_no_public_method",
        "a caller's token at the runtime service": CALLS
        + "test_a_users_credential_does_not_open_the_runtime_service",
        "the runtime service through the REST listener": EDGE,
        "the runtime service through the gRPC listener": "wire/edge/test_grpc.py::"
        "test_an_unknown_method_is_refused",
        "reflection that shows the runtime service": CALLS
        + "test_reflection_needs_no_credential_and_hides_the_runtime_service",
        "the token of another control plane": POD_TOKENS
        + "test_another_control_planes_token_is_refused",
        "a malformed token": POD_TOKENS + "test_a_malformed_token_is_refused",
        "parts of two tokens": POD_TOKENS + "test_the_parts_of_two_runtime_tokens_cannot_be_mixed",
        "a token made with the secret of another workspace or epoch": RUNTIME_TOKENS
        + "test_a_token_of_another_workspace_or_epoch_does_not_act_for_this_one",
        "a token of an epoch that is over": RUNTIME_TOKENS
        + "test_the_token_of_an_epoch_that_is_over_is_fenced",
        "an expired token": POD_TOKENS + "test_a_runtime_token_is_accepted_for_three_minutes",
        "replay of a token": RUNTIME_TOKENS + "test_a_replayed_token_is_refused_after_its_window",
        "a forged token that asks for the time": RUNTIME_TOKENS
        + "test_only_an_authentic_token_is_told_the_time",
        "a signal token as a runtime token": RUNTIME_TOKENS
        + "test_a_signal_token_does_not_open_the_runtime_service",
        "a runtime token as a signal token": SIGNALS + "test_a_runtime_token_is_no_signal_token",
        "a secret or a signal token as a runtime token": POD_TOKENS
        + "test_a_secret_or_a_signal_token_is_not_a_runtime_token",
        "a secret as a signal token": SIGNALS + "test_a_secret_is_no_signal_token",
        "a malformed signal token": SIGNALS + "test_a_malformed_token_is_refused",
        "a signal for another workspace": SIGNALS
        + "test_the_token_of_another_workspace_is_refused",
        "a signal for another epoch": SIGNALS + "test_the_token_of_another_epoch_is_refused",
        "workspace and epoch swapped": SIGNALS + "test_workspace_and_epoch_cannot_be_swapped",
        "an expired signal": SIGNALS + "test_the_clocks_may_differ_by_a_minute",
        "replay of a signal": SIGNALS + "test_a_token_is_refused_after_its_window",
        "a signal of the future": SIGNALS
        + "test_a_token_of_the_future_is_refused_until_its_window",
        "an agent of an epoch that is over": RUNTIME
        + "test_another_epoch_is_fenced_and_writes_nothing",
        "an agent that acts for another workspace": CALLS
        + "test_an_agent_acts_for_its_own_workspace",
    },
    "agent that was taken over": {
        "a breach of a task whose cancellation is recorded": AGENTS
        + "test_a_cancelled_task_ends_cancelled_with_the_pod",
        "many large commits at once": AGENTS
        + "test_many_large_commits_hold_little_memory_of_the_worker",
        "calls without a pause": "wire/api/test_reading.py::"
        "test_an_agent_is_served_one_call_at_a_time_and_few_wait",
        "more bytes a second than a worker takes": "wire/api/test_reading.py::"
        "test_an_agent_that_sends_fast_waits_for_its_next_turn",
        "large events that a worker reads for a watcher": "unit/store/test_postgres_store.py::"
        "test_a_batch_of_large_events_ends_early_and_the_next_one_continues",
        "a task that is never started, so that no limit counts": "unit/core/"
        "test_workspace_lifecycle.py::"
        "test_an_agent_that_has_not_started_its_task_does_not_name_it",
    },
    "agents' TLS": {
        "a captured token with another certificate": AGENT_TLS
        + "test_a_token_is_refused_on_a_connection_with_another_certificate",
        "a certificate without its token": AGENT_TLS
        + "test_a_certificate_without_a_token_is_refused",
        "plain text, or TLS without a certificate, at a worker": AGENT_TLS
        + "test_plain_text_and_tls_without_a_certificate_are_refused",
        "an agent at the listener of the edge": AGENT_TLS
        + "test_the_listener_of_the_edge_takes_no_agents",
        "a caller at the listener of agents": AGENT_TLS
        + "test_the_listener_of_agents_takes_no_callers",
        "another control plane in place of the own": AGENT_TLS
        + "test_an_agent_refuses_another_control_plane",
        "an agent in place of the control plane": AGENT_TLS
        + "test_an_agent_refuses_another_agent_in_place_of_the_control_plane",
        "a plain control plane": "unit/agents/test_tls.py::"
        "test_an_agent_with_tls_sends_nothing_in_plain_text",
        "strangers, and other agents, at an agent": "unit/agents/test_tls.py::"
        "test_an_agent_takes_no_calls_of_strangers",
        "plain text, or TLS without a certificate, at an agent": "unit/agents/test_tls.py::"
        "test_an_agent_takes_no_plain_text_and_no_tls_without_a_certificate",
        "another certificate at the address of an agent": "unit/fleet/test_agent_tls.py::"
        "test_no_token_is_sent_to_strangers",
        "plain text at the address of an agent": "unit/fleet/test_agent_tls.py::"
        "test_an_agent_in_plain_text_is_not_signalled",
        "strangers at the workers of a stack": STACK_TLS
        + "test_a_worker_refuses_agents_with_another_certificate",
        "plain text at the workers of a stack": STACK_TLS
        + "test_a_worker_refuses_agents_in_plain_text",
        "strangers at an agent of a stack": STACK_TLS + "test_an_agent_refuses_strangers",
        "failed handshakes that fill the log": STACK_TLS
        + "test_failed_handshakes_leave_no_lines_in_the_log",
    },
    "bomb and slow client": {
        "bytes that are not a message": "wire/api/test_errors.py::"
        "test_bytes_that_are_no_message_are_invalid",
        "deep JSON, huge numbers, invalid UTF-8 over REST": EDGE,
        "a large gRPC message": "wire/edge/test_grpc.py::"
        "test_messages_over_the_size_limit_are_refused",
        "a large request at a worker": "wire/api/test_reading.py::test_a_request_has_a_size_limit",
        "random requests": "wire/edge/long/test_fuzz.py::"
        "test_every_request_gets_a_success_or_the_envelope",
        "a request that never ends": "wire/api/test_reading.py::"
        "test_a_request_that_does_not_arrive_in_time_is_refused",
        "a body before the credential is checked": "stack/long/test_strangers.py::"
        "test_a_bad_credential_is_refused_before_the_body",
        "connections that hold a body": "stack/long/test_strangers.py::"
        "test_connections_that_hold_a_body",
        "streams that hold a message": "stack/long/test_strangers.py::"
        "test_streams_that_hold_a_message",
        "resets, bad credentials, half messages and slow bodies together": "stack/long/"
        "test_strangers.py::test_resets_bad_credentials_half_messages_and_slow_bodies",
        "a credential that a library logs": "unit/test_logs.py::test_libraries_log_no_credential",
        "a header that is not printable": "wire/edge/test_grpc.py::"
        "test_a_header_that_is_not_printable_ascii_is_refused",
        "idle connections": "wire/edge/long/test_overload.py::"
        "test_idle_connections_are_closed_before_the_limit_is_reached",
        "a loop that blocks another's cancel": "wire/api/test_rate_limits.py::"
        "test_a_loop_on_the_right_task_does_not_limit_other_callers",
        "lines that fill the log": "wire/edge/test_access_log.py::"
        "test_calls_without_a_credential_do_not_fill_the_log",
        "refusals that fill the audit log": "wire/api/test_auditing.py::"
        "test_a_flood_of_unauthenticated_calls_leaves_few_entries",
        "log fields without a limit": "unit/test_logs.py::test_every_field_is_truncated_at_a_bound",
    },
    "tool": {
        "a stranger named as the agent": TOOLS + "test_a_tool_that_names_a_stranger_as_its_agent",
        "a link to another pod's folder": TOOLS
        + "test_a_tool_that_links_its_pods_folder_to_another_ones",
        "a link out of its files": TOOLS + "test_a_tool_that_links_its_files_elsewhere",
        "a record that names another process": RECORDS
        + "test_another_process_that_a_record_names_is_not_ended",
        "a record that names another workspace": RECORDS
        + "test_the_agent_of_another_workspace_is_not_ended",
        "a process that outlives its tool call": "faults/long/attacks/test_sandbox.py::"
        "test_a_tool_leaves_nothing_behind_that_runs",
        "the model's key from within a tool": "stack/long/test_openai.py::"
        "test_the_key_is_in_no_log_and_not_in_what_the_agent_gives_its_tools",
    },
}
# Tests that make each attack of another table: the group, the attacks, the test.
_TABLES = (
    (
        "forged credential at a worker",
        [*FORGED, *AT_WORKER],
        FORGERIES + "test_a_forged_credential_is_refused",
    ),
    # Each of these on the whole stack, over REST and over gRPC.
    ("forged credential", FORGED, CALLERS + "test_a_forged_credential_is_refused"),
    (
        "call beyond the caller's rights",
        BEYOND_RIGHTS,
        CALLERS + "test_a_call_beyond_the_callers_rights_is_refused",
    ),
    ("spoofed header", SPOOFED, CALLERS + "test_a_header_changes_nobodys_rights"),
    ("injection", INJECTIONS, CALLERS + "test_an_injection_remains_a_text"),
    (
        "bytes that are not a request",
        [*BODIES, *MESSAGES],
        CALLERS + "test_bytes_that_are_no_request_are_refused",
    ),
    (
        "agent that breaks a rule",
        AGENT_ATTACKS,
        AGENTS + "test_an_agent_that_breaks_a_rule_ends_with_its_pod",
    ),
    ("the service of agents", AGENT_METHODS, CALLERS + "test_the_service_of_agents_is_not_public"),
    ("injection through a text", INJECTIONS, TEXTS + "test_a_text_comes_back_as_it_was_sent"),
    (
        "injection through an id",
        INJECTIONS,
        TEXTS + "test_a_text_in_place_of_an_id_is_refused_and_repeated_nowhere",
    ),
    (
        "injection through a filter",
        INJECTIONS,
        TEXTS + "test_a_text_in_a_filter_matches_only_itself",
    ),
    ("injection through a header", PRINTABLE, TEXTS + "test_a_text_in_a_header_is_one_value"),
    ("injection into the database", INJECTIONS, STORED + "test_every_text_is_stored_as_it_is"),
    ("injection into a query", INJECTIONS, STORED + "test_a_text_finds_only_what_is_called_so"),
    (
        "tool in a sandbox",
        [attack.name for attack in ATTACKS],
        "faults/long/attacks/test_sandbox.py::test_an_attack_is_refused",
    ),
)

ROWS = [
    *(
        Row(group, attack, test)
        for group, rows in _WRITTEN.items()
        for attack, test in rows.items()
    ),
    *(Row(group, attack, test, True) for group, attacks, test in _TABLES for attack in attacks),
]
