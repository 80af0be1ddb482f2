"""The examples that are generated for messages without a written example."""

import json

from tests.unit.protos.generator import printed

EXAMPLES = """
import json

import examples
from generate import DESCRIPTOR_SET, GEN
from source import PACKAGE, Protos

pool = Protos((GEN / DESCRIPTOR_SET).read_bytes()).pool
examples.EXAMPLES.pop("CancelTaskResponse")
for name in ("CancelTaskResponse", "SubmitTaskRequest"):
    print(json.dumps(examples.reply(pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))))
"""


def test_it_has_the_examples_of_the_messages_in_it_and_empty_maps() -> None:
    with_task, with_map = map(json.loads, printed(EXAMPLES).splitlines())
    assert with_task["task"]["id"].startswith("task_") and with_task["task"]["metadata"] == {}
    assert with_map["metadata"] == {}
