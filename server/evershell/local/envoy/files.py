"""The files that Envoy reads: its own, and those that are generated from the protos."""

from importlib import resources
from pathlib import Path


def edge_file(*names: str) -> Path:
    """The path of a file of the package `evershell.edge`.

    In a checkout, the package has a folder in envoy/ and one in gen/.
    """
    resource = resources.files("evershell.edge")
    for name in names:
        resource = resource / name
    return Path(str(resource))
