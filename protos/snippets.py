"""Code samples for the calls that generated clients cannot make.

A generated client reads the whole answer before it returns, and a stream of events never ends.
"""

from typing import Any

SHELL = """\
curl -N "$URL{path}?after=0" -H "Authorization: Bearer $TOKEN"
"""
JAVASCRIPT = """\
let lastId = String(seq);
for (;;) {{
  const headers = {{ authorization: `Bearer ${{token}}`, "last-event-id": lastId }};
  // An answer is missing if the connection broke.
  const answer = await fetch(`${{url}}{path}`, {{ headers }}).catch(() => null);
  if (answer && !answer.ok && answer.status < 500) throw new Error(await answer.text());
  let text = "";
  try {{
    for await (const part of answer.body.pipeThrough(new TextDecoderStream())) {{
      const frames = (text + part).split("\\n\\n");
      text = frames.pop();
      for (const frame of frames) {{
        const lines = frame.split("\\n").map((line) => line.split(/: (.*)/s));
        const {{ id, data }} = Object.fromEntries(lines);
        if (data) console.log(JSON.parse(data));
        lastId = id ?? lastId;
      }}
    }}
  }} catch {{
    // The connection broke: go on after the last event.
  }}
  await new Promise((resolve) => setTimeout(resolve, 1000));
}}
"""
PYTHON = """\
import time
import httpx
from httpx_sse import connect_sse

last_id = str(seq)
with httpx.Client(timeout=60) as client:
    while True:
        headers = {{"authorization": f"Bearer {{token}}", "last-event-id": last_id}}
        try:
            with connect_sse(client, "GET", f"{{url}}{path}", headers=headers) as events:
                for event in events.iter_sse():
                    print(event.json())
                    last_id = event.id or last_id
        except httpx.TransportError:
            pass  # The connection broke: go on after the last event.
        time.sleep(1)
"""


def code_samples(path: str) -> list[dict[str, Any]]:
    """Samples that read the stream at this path message by message.

    The samples in JavaScript and Python resume the stream when the connection breaks.
    """
    shell = SHELL.format(path=path.replace("{workspace_id}", "$WORKSPACE_ID"))
    javascript = JAVASCRIPT.format(path=path.replace("{workspace_id}", "${workspaceId}"))
    return [
        {"lang": "Shell", "label": "curl", "source": shell},
        {"lang": "JavaScript", "label": "fetch", "source": javascript},
        {"lang": "Python", "label": "httpx-sse", "source": PYTHON.format(path=path)},
    ]
