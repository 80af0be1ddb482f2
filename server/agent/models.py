"""The models that there are, by name."""

from server.agent.model import Endpoint, Model, ScriptedModel


class UnknownModelError(Exception):
    """The settings name a model that there is none of."""


def model_of(name: str, endpoint: Endpoint | None = None) -> Model:
    """The model of that name. Raises UnknownModelError, and ValueError when the endpoint's settings
    cannot be used.
    """
    if name == ScriptedModel.name:
        return ScriptedModel()
    kind, _, hosted = name.partition(":")
    if kind == "openai" and hosted:
        # Here, for it is large: an agent that runs scripts does without.
        from server.agent.openai_model import OpenAIModel

        return OpenAIModel(hosted, endpoint or Endpoint())
    raise UnknownModelError(
        f"There is no model {name!r}. Use {ScriptedModel.name!r} or 'openai:<model>'."
    )
