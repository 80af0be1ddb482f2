"""The code samples in the OpenAPI document read the events of a stream that has not ended."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.exhaustive.clients.tools import RUN_SECONDS, node
from tests.support.openapi import operations
from tests.support.stack import Stack, Workspace

# Each program ends at the first event that the sample prints.
PRELUDES = {
    "JavaScript": """
const [url, token, workspaceId] = process.argv.slice(2);
const seq = 0;
console.log = (event) => {
  process.stdout.write(JSON.stringify(event), () => process.exit(0));
};
""",
    "Python": """
import json, sys
import httpx
url, token, workspace_id = sys.argv[1:]
seq = 0
def print(event):
    sys.stdout.write(json.dumps(event))
    sys.exit(0)
""",
}


@pytest.mark.parametrize("language", PRELUDES)
def test_a_sample_reads_the_stream(
    stack: Stack, workspace: Workspace, tmp_path: Path, language: str
) -> None:
    (source,) = [
        sample["source"]
        for each in operations()
        for sample in each.described.get("x-codeSamples", [])
        if sample["lang"] == language
    ]
    program = tmp_path / ("sample.mjs" if language == "JavaScript" else "sample.py")
    program.write_text(PRELUDES[language] + source)
    arguments = [stack.ready["rest_url"], stack.tokens["full_access"], workspace.id]
    if language == "JavaScript":
        done = node(program, *arguments, folder=tmp_path)
    else:
        command = [sys.executable, str(program), *arguments]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=RUN_SECONDS
        )
    assert done.returncode == 0, done.stderr
    assert "workspace_provisioned" in json.dumps(json.loads(done.stdout))
