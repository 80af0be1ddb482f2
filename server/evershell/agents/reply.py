"""What is known about the model call of an iteration."""

from evershell.agents.usage import field_of, tokens_of
from evershell.core.task import TOKENS


class Reply:
    """The reply of a model, as far as it has been received.

    An agent may fill it in while the call runs, for example from a stream: if the call is
    interrupted, this is what is recorded. If the agent fills in nothing, the reply is read from the
    answer of the call, if the answer has the fields that common SDKs use.
    """

    def __init__(self) -> None:
        self.model = ""
        # The numbers of tokens that the endpoint has reported so far.
        self.input_tokens = 0
        self.output_tokens = 0
        # Parts of the input and output tokens. docs/costs.md explains them.
        self.cached_input_tokens = 0
        self.cache_write_tokens = 0
        self.cache_write_1h_tokens = 0
        self.input_audio_tokens = 0
        self.reasoning_tokens = 0
        self.output_audio_tokens = 0
        self._texts: list[str] = []

    @property
    def content(self) -> str:
        """The text received so far."""
        # SDKs use None for parts without text.
        return "".join(str(text) for text in self._texts if text is not None)

    @content.setter
    def content(self, text: str) -> None:
        self._texts[:] = [text]

    def add(self, text: str) -> None:
        """Appends to the content."""
        self._texts.append(text)

    @property
    def known(self) -> tuple[object, ...]:
        """A value that changes whenever the agent adds something.

        It does not change if the agent replaces a text.
        """
        return self.model, len(self._texts), *(getattr(self, kind) for kind in TOKENS)

    def set_tokens(self, usage: object) -> None:
        """Replaces the token counts with the reported ones."""
        for kind, count in tokens_of(usage).items():
            setattr(self, kind, count)

    def add_tokens(self, usage: object) -> None:
        """Adds the reported tokens to the counts."""
        for kind, count in tokens_of(usage).items():
            setattr(self, kind, getattr(self, kind) + count)

    def take(self, answer: object) -> None:
        """Reads the answer of a call. The tokens of several calls are added up."""
        usage = field_of(answer, "usage", "usage_metadata")
        self.add_tokens(usage() if callable(usage) else usage)
        model = field_of(answer, "model", "model_name")
        self.model = model if isinstance(model, str) else self.model
        text = _text(answer)
        if text:
            self.content = text


def _text(answer: object) -> str:
    """The text of an answer: a chat completion, a response, or a message with blocks."""
    if isinstance(answer, str):
        return answer
    choices = field_of(answer, "choices")
    if isinstance(choices, list) and choices:
        return _text(field_of(choices[0], "message"))
    text = field_of(answer, "output_text", "content", "text")
    if isinstance(text, list | tuple):
        return "".join(map(_text, text))
    return text if isinstance(text, str) else ""
