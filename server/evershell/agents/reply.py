"""What is known of the model call of an iteration."""

from typing import Any


class Reply:
    """The reply of a model, as much of it as has been received.

    An agent may fill it in while the call runs, for example from a stream: if the call is
    interrupted, this is what is recorded. What an agent leaves out is read from the answer of the
    call, if that has the fields of a common SDK.
    """

    def __init__(self) -> None:
        self.model = ""
        # The numbers that the endpoint has reported so far.
        self.input_tokens = 0
        self.output_tokens = 0
        self._texts: list[str] = []

    @property
    def content(self) -> str:
        """The text received so far."""
        # SDKs have None for parts without a text.
        return "".join(str(text) for text in self._texts if text is not None)

    @content.setter
    def content(self, text: str) -> None:
        self._texts[:] = [text]

    def add(self, text: str) -> None:
        """Appends to the content."""
        self._texts.append(text)

    @property
    def known(self) -> tuple[str, int, int, int]:
        """Changes whenever the agent adds something."""
        return self.model, self.input_tokens, self.output_tokens, len(self._texts)

    def take(self, answer: object) -> None:
        """Reads the answer of a call. The tokens of several calls are added up."""
        usage = _field(answer, "usage", "usage_metadata")
        usage = usage() if callable(usage) else usage
        self.input_tokens += _count(_field(usage, "input_tokens", "prompt_tokens"))
        self.output_tokens += _count(_field(usage, "output_tokens", "completion_tokens"))
        model = _field(answer, "model", "model_name")
        self.model = model if isinstance(model, str) else self.model
        text = _text(answer)
        if text:
            self.content = text


def _field(value: object, *names: str) -> Any:
    """The first of these fields of an object or a mapping; None if it has none of them."""
    for name in names:
        found = value.get(name) if isinstance(value, dict) else getattr(value, name, None)
        if found is not None:
            return found
    return None


def _count(tokens: object) -> int:
    return tokens if isinstance(tokens, int) else 0


def _text(answer: object) -> str:
    """The text of an answer: of a chat completion, of a response, or of a message with blocks."""
    if isinstance(answer, str):
        return answer
    choices = _field(answer, "choices")
    if isinstance(choices, list) and choices:
        return _text(_field(choices[0], "message"))
    text = _field(answer, "output_text", "content", "text")
    if isinstance(text, list | tuple):
        return "".join(map(_text, text))
    return text if isinstance(text, str) else ""
