"""Samples of code for calls that generated clients do not make well.

A generated client reads the whole answer before it returns, and a stream of events never ends.
"""

from typing import Any

SHELL = """\
curl -N "$URL{path}?after=0" -H "Authorization: Bearer $TOKEN"
"""
JAVASCRIPT = """\
const answer = await fetch(`${{url}}{path}?after=${{seq}}`, {{
  headers: {{ authorization: `Bearer ${{token}}` }},
}});
let text = "";
for await (const part of answer.body.pipeThrough(new TextDecoderStream())) {{
  text += part;
  const lines = text.split("\\n");
  text = lines.pop();
  for (const line of lines.filter((line) => line.startsWith("data: "))) {{
    console.log(JSON.parse(line.slice("data: ".length)));
  }}
}}
"""
PYTHON = """\
headers = {{"authorization": f"Bearer {{token}}"}}
with httpx.stream(
    "GET", f"{{url}}{path}", params={{"after": seq}}, headers=headers, timeout=60
) as answer:
    for line in answer.iter_lines():
        if line.startswith("data: "):
            print(json.loads(line.removeprefix("data: ")))
"""


def code_samples(path: str) -> list[dict[str, Any]]:
    """Samples that read the stream at this path message by message."""
    shell = SHELL.format(path=path.replace("{workspace_id}", "$WORKSPACE_ID"))
    javascript = JAVASCRIPT.format(path=path.replace("{workspace_id}", "${workspaceId}"))
    return [
        {"lang": "Shell", "label": "curl", "source": shell},
        {"lang": "JavaScript", "label": "fetch", "source": javascript},
        {"lang": "Python", "label": "httpx", "source": PYTHON.format(path=path)},
    ]
