"""The command `verify` on a running stack."""

from evershell.client import Client
from tests.support.commands import Run
from tests.support.stack import Stack


def test_a_deployment_is_verified_and_nothing_is_left(call: Run, stack: Stack) -> None:
    organization = ("--org", "new", "--create-org", "verified")
    key = call("keys", "create", *organization, "--template", "full_access").stdout.strip()
    url, options = f"http://{stack.ready['grpc_addr']}", ("--for", "3s", "--workspaces", "2")

    done = call("verify", *options, EVERSHELL_URL=url, EVERSHELL_API_KEY=key)

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("held: every answer of ")
    assert " accepted" in done.stdout
    with Client(url, key) as client:
        assert list(client.list_workspaces()) == []
