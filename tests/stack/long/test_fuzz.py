"""Sends valid and invalid requests that are generated from the OpenAPI document.

Each response must match the document or the error envelope. FUZZ_EXAMPLES sets the number of
requests for each operation and mode, and FUZZ_SEED sets the random seed.
"""

import json
import os
from collections import Counter
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import requests
import schemathesis
from schemathesis import Case, GenerationMode

from tests.support.edge.answers import Answer, check
from tests.support.lengths import smoke
from tests.support.openapi import Operation, document, operations
from tests.support.stack import Stack, Workspace

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "12"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))
# The operations that do no harm, in addition to the reads. The others could run generated commands,
# start agents, or stop everything, so the test sends them only for workspaces that do not exist,
# and with tokens that lack permission.
HARMLESS = {"CancelTask", "CancelTaskByTaskId"}
MODES = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]
OPERATIONS = list(operations())
CANCEL = [each for each in OPERATIONS if each.described["operationId"] == "CancelTask"]


@pytest.fixture(scope="module")
def workspace(stack: Stack) -> Workspace:
    """A workspace that all harmless operations share."""
    return Workspace(stack)


def ask(stack: Stack, case: Case[Any], token: str) -> Answer:
    """Sends the request. For a stream, reads only the status and headers."""
    arguments = case.as_transport_kwargs(base_url=stack.ready["rest_url"])
    arguments["headers"] = {
        **arguments.get("headers", {}),
        "authorization": f"Bearer {stack.tokens[token]}",
    }
    with requests.request(**arguments, timeout=10, stream=True, allow_redirects=False) as response:
        headers = [(name.lower(), value) for name, value in response.headers.items()]
        is_stream = response.headers.get("content-type") == "text/event-stream"
        return Answer(response.status_code, headers, b"" if is_stream else response.content)


@pytest.mark.parametrize("mode", smoke(MODES, MODES[:1]), ids=lambda mode: mode.value)
@pytest.mark.parametrize(
    "operation",
    smoke(OPERATIONS, CANCEL),
    ids=lambda operation: operation.described["operationId"],
)
def test_any_request_drawn_from_the_document(
    stack: Stack, workspace: Workspace, operation: Operation, mode: GenerationMode
) -> None:
    drawn = schemathesis.openapi.from_dict(document())[operation.path][operation.method]
    is_harmless = operation.method == "GET" or operation.described["operationId"] in HARMLESS
    told: Counter[int] = Counter()

    @hypothesis.seed(SEED)
    @hypothesis.settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(
        case=drawn.as_strategy(generation_mode=mode),
        token=st.sampled_from(
            ["full_access", "member", "read_only"] if is_harmless else ["read_only", "expired"]
        ),
        is_real=st.booleans(),
    )
    def send(case: Case[Any], token: str, is_real: bool) -> None:
        if is_real and is_harmless and "workspace_id" in case.path_parameters:
            case.path_parameters["workspace_id"] = workspace.id
        answer = ask(stack, case, token)
        told[answer.status] += 1
        assert answer.status < 500, (answer, case.as_curl_command())
        error = check(answer)
        if error is None:
            if answer.header("content-type") == "application/json":
                operation.check(answer.status, "application/json", json.loads(answer.body))
        elif error["code"] in operation.slugs():
            operation.check(answer.status, "application/json", {"error": error})

    send()
    print(f"{sum(told.values())} requests: {dict(sorted(told.items()))}")
    assert sum(told.values()) >= min(EXAMPLES, 2)
