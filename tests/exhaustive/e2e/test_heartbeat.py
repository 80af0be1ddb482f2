"""A stream without events sends heartbeats through Envoy. The test takes 15 s."""

from itertools import islice

from tests.support.stack import Workspace


def test_a_stream_that_is_quiet_says_that_it_lives(workspace: Workspace) -> None:
    last = workspace.log()[-1]["seq"]
    (message,) = islice(workspace.rest.events(workspace.id, after=last), 1)
    # A comment.
    assert message == {"heartbeat": {}}
