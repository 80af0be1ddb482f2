"""The settings that the previous version had and this version does not have.

A program of the service does not start if one of them is set.
"""

from collections.abc import Collection, Mapping

from evershell.core.errors import OperatorError

_TEMPLATE = "Set {} in POD_TEMPLATE_FILE; with the chart, in its value `agents`."
# For each of these settings, what to do instead.
_INSTEAD = {
    "CRASH_POINTS_DIR": "Unset it: only tests used it.",
    "EDGE_WORKERS": "Give `evershell edge` the workers as arguments: HOST:PORT, for each one.",
    "LOG_MAX_BYTES": "Unset it: only tests used it. Logs are rotated at 16 MiB.",
    **dict.fromkeys(("METRICS_HOST", "METRICS_PORT"), "Set METRICS_ADDRESS to host:port."),
    "OIDC_RESOURCE": "Add `resource=…`, URL-encoded, to the query of OIDC_AUTHORIZATION_URL.",
    "OIDC_SCOPES": "Add `scope=…`, URL-encoded, to the query of OIDC_AUTHORIZATION_URL.",
    "OPENAI_API_KEY_FILE": "Set AGENT_KEYS_FILE to a file with this JSON object: "
    '{"OPENAI_API_KEY": "…"}.',
    "POD_BACKEND": "Unset it. Pods run on Kubernetes if POD_IMAGE is set.",
    "POD_CPU_LIMIT": _TEMPLATE.format("resources.limits.cpu"),
    "POD_CPU_REQUEST": _TEMPLATE.format("resources.requests.cpu"),
    "POD_END_SECONDS": "Unset it: only tests used it. The time is 20 s.",
    "POD_IMAGE_PULL_SECRET": _TEMPLATE.format("pod.imagePullSecrets"),
    "POD_MEMORY_LIMIT": _TEMPLATE.format("resources.limits.memory"),
    "POD_MEMORY_REQUEST": _TEMPLATE.format("resources.requests.memory"),
    "POD_NAMESPACE": "Pods are in the namespace of the service account, or of the kubeconfig.",
    "POD_RUNTIME_CLASS": _TEMPLATE.format("pod.runtimeClassName"),
    "POD_STORAGE": _TEMPLATE.format("volume.resources.requests.storage"),
    "POD_STORAGE_CLASS": _TEMPLATE.format("volume.storageClassName"),
    "RATE_LIMIT_PER_SECOND": "Set RATE_LIMIT to the number of calls per second, or to `off`.",
    "RUNTIME_PORT": "Unset it: with AGENT_TLS, workers serve agents on SERVER_PORT + 100.",
    "TOOL_FILE_MB": "Unset it: a tool writes files of up to 4096 MiB each.",
    "TOOL_PROCESSES": "Unset it: a tool call has up to 512 processes.",
    "WORKSPACE_FILES_MB": "Keep pods/ of STATE_DIR on a file system of its own, and watch it.",
}
# `up` of version 0.1.0 gives these to its programs, which use them under another name.
RENAMED = frozenset({"METRICS_HOST", "METRICS_PORT"})


def refuse_removed_settings(
    environment: Mapping[str, str], but: Collection[str] = frozenset()
) -> None:
    """Raises OperatorError if the environment has a setting that was removed, except for `but`."""
    # If RUN_ID is set, `up` has started this program, and the environment has been checked already:
    # by `up`, or by `restart` if the version of `up` is earlier than the version of this program.
    # An earlier `up` also passes on settings that the operator has not set, and a check here would
    # refuse them.
    if "RUN_ID" in environment:
        return
    given = {name.upper() for name, value in environment.items() if value} - set(but)
    problems = [f"{name}: {advice}" for name, advice in _INSTEAD.items() if name in given]
    if problems:
        raise OperatorError(f"Some settings no longer exist. {' '.join(problems)}")


def renamed_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """The settings that an `up` of version 0.1.0 has given to this program under an old name."""
    port = environment.get("METRICS_PORT", "0") if "RUN_ID" in environment else "0"
    if port == "0":
        return {}
    host = environment["METRICS_HOST"]
    return {"METRICS_ADDRESS": f"[{host}]:{port}" if ":" in host else f"{host}:{port}"}
