"""A fake of the parts of Slack that the bot needs.

These are the Web API, and the signed requests that Slack sends when a user types a command or
presses a button.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import urlencode

import httpx

SECRET = "the-signing-secret-of-the-app"
CHANNEL = "C0000000001"
USER = {"id": "U0000000001", "username": "ada"}


class FakeSlack(ThreadingHTTPServer):
    """Records what the bot says. The first `failures` posts to a channel fail."""

    daemon_threads = True

    def __init__(self, failures: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.failures = failures
        # The answers to commands and buttons.
        self.responses: list[dict[str, Any]] = []
        # The posts to channels.
        self.posts: list[dict[str, Any]] = []

    def answer(self, path: str, body: str) -> dict[str, Any]:
        if path == "/response":
            self.responses.append(json.loads(body))
        elif path == "/api/chat.postMessage":
            if self.failures:
                self.failures -= 1
                return {"ok": False, "error": "internal_error"}
            self.posts.append(json.loads(body))
        else:
            assert path == "/api/auth.test", path
        return {"ok": True, "bot_id": "B0000000001", "user_id": "U0000000002"}

    def command(self, bot: str, secret: str = SECRET) -> httpx.Response:
        """The user types `/tasks`."""
        fields = {"command": "/tasks", "channel_id": CHANNEL, "user_id": USER["id"]}
        return self._send(bot, secret, {**fields, "response_url": f"{self.url}/response"})

    def press(self, bot: str, button: dict[str, Any]) -> httpx.Response:
        """The user presses a button of a message, and confirms it."""
        payload = {
            "type": "block_actions",
            "user": USER,
            "channel": {"id": CHANNEL},
            "actions": [{name: button[name] for name in ("type", "action_id", "value")}],
            "response_url": f"{self.url}/response",
        }
        return self._send(bot, SECRET, {"payload": json.dumps(payload)})

    def _send(self, bot: str, secret: str, fields: dict[str, str]) -> httpx.Response:
        # Only the long tests install slack_sdk.
        from slack_sdk.signature import SignatureVerifier

        body = urlencode(fields)
        headers = {"content-type": "application/x-www-form-urlencoded"}
        timestamp = str(int(SignatureVerifier(secret).clock.now()))
        signature = SignatureVerifier(secret).generate_signature(timestamp=timestamp, body=body)
        headers |= {"x-slack-request-timestamp": timestamp, "x-slack-signature": str(signature)}
        return httpx.post(f"{bot}/slack/events", content=body, headers=headers, trust_env=False)


class _Handler(BaseHTTPRequestHandler):
    server: FakeSlack

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"] or 0)).decode()
        answer = json.dumps(self.server.answer(self.path, body)).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        """Prints nothing."""


@contextmanager
def fake_slack(failures: int = 0) -> Iterator[FakeSlack]:
    with FakeSlack(failures) as server:
        thread = Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
