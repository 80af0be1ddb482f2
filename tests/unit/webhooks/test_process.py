"""The process that sends the requests of webhooks."""

import subprocess
import sys

_PROGRAM = """
import asyncio, resource
from evershell.webhooks.process import follow_worker
limits = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
asyncio.run(follow_worker(lambda: None))
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (limits[1], limits[1])
"""


def test_it_may_have_as_many_connections_as_the_system_allows() -> None:
    """Many hosts allow a program 1,024 files unless it asks for more."""
    subprocess.run([sys.executable, "-c", _PROGRAM], input=b"", check=True, timeout=60)
