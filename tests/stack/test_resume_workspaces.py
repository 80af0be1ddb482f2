"""Failed workspaces of a second organization are resumed together: over REST, and by a command."""

from tests.support.commands import Run
from tests.support.other_org import OTHER_ORG
from tests.support.stack import Stack, Workspace

PATH = "/v1/workspaces/resume"


def test_failed_workspaces_are_resumed_together(
    stack: Stack, others: list[Workspace], call: Run
) -> None:
    rest, ids = others[0].rest, [other.id for other in others]
    for other in others:
        other.await_end(other.submit("true"))
        stack.kill(stack.agent_pid(other.id))
    for other in others:
        other.await_status("failed")
    wanted = {"filter": {"workspace_ids": ids}}
    dry = rest.post(PATH, wanted | {"dry_run": True})
    matched = [{"workspace_id": id_, "outcome": "matched"} for id_ in ids]
    assert dry == {"matched": 2, "accepted": 0, "remaining": 2, "results": matched}
    assert stack.rest().post(PATH, wanted)["matched"] == 0
    rest.post("/v1/hold", status=200)
    refused = rest.call("POST", PATH, json={"all": True})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "org_on_hold")
    rest.post("/v1/hold/release", status=200)

    headers = {"idempotency-key": f"resume {ids[0]}"}
    some = {"filter": {"workspace_ids": ids[:1]}}
    first = rest.call("POST", PATH, json=some, headers=headers)
    assert (first.status_code, first.json()["accepted"]) == (202, 1)
    assert rest.call("POST", PATH, json=some, headers=headers).json() == first.json()
    owner = {
        "EVERSHELL_URL": f"http://{stack.ready['grpc_addr']}",
        "EVERSHELL_API_KEY": stack.tokens[OTHER_ORG],
    }
    done = call("workspace", "resume", "--filter", f"workspace={ids[1]}", typed="1\n", **owner)

    assert (done.returncode, done.stdout.startswith("accepted: 1 workspace resumed.")) == (0, True)
    for other in others:
        other.await_status("idle")
        assert other.await_end(other.submit("true"))["status"] == "completed"
