"""`make run` with a certificate: the calls that it prints work without changes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx

from evershell.stack.ready import trust
from tests.support.edge.certificates import Authority
from tests.support.stack import ROOT, Stack


def test_a_stack_with_tls(tmp_path: Path) -> None:
    certificate = Authority(tmp_path, "authority").issue("edge")
    files = {"TLS_CERT_FILE": str(certificate.cert_file), "TLS_KEY_FILE": str(certificate.key_file)}
    with Stack(tmp_path / "state", **files).started() as stack:
        workspace_id = stack.ready["demo"]["workspace_id"]
        url = stack.ready["rest_url"]
        assert url.startswith("https://")
        with httpx.Client(
            base_url=url, verify=trust(certificate.cert_file), http2=True, trust_env=False
        ) as client:
            refused = client.post(f"/v1/workspaces/{workspace_id}/task/cancel")
        assert (refused.status_code, refused.http_version) == (401, "HTTP/2")
        printed = stack.output.read_text()
        environment = os.environ | {
            "TOKEN": stack.tokens["full_access"],
            "EVERSHELL_CONFIG": "/nowhere/profiles.json",
            "STATE_DIR": str(stack.state_dir),
            "EVERSHELL_URL": "",
            "EVERSHELL_API_KEY": "",
        }
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        calls = [
            found[1].replace("\\\n", "")
            for found in re.finditer(
                r"\n  ((?:curl .*-X POST .*cancel|\S*grpcurl )(?:.*\\\n)*.*)", printed
            )
        ]
        assert len(calls) == 2
        for call in [*calls, f"{sys.executable} -m evershell.commands cancel {workspace_id}"]:
            called = subprocess.run(
                ["/bin/sh", "-c", call],
                cwd=ROOT,
                env=environment,
                check=False,
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert "no_active_task" in called.stdout, (call, called)
