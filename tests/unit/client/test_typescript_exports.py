"""The TypeScript client exports the messages of every file of the API."""

import re

from tests.support.stack import ROOT

# `Error` would hide that of JavaScript, and the options of fields are for the service.
LEFT_OUT = {"error", "field"}


def test_the_messages_of_every_file_are_exported() -> None:
    protos = {each.stem for each in (ROOT / "protos/evershell/workspace/v1").glob("*.proto")}
    index = (ROOT / "clients/typescript/src/index.ts").read_text()
    exported = re.findall(r'export \* from "./gen/evershell/workspace/v1/(\w+)_pb.js"', index)
    assert set(exported) == protos - LEFT_OUT
