"""The changelog lists all names that the last release does not have."""

from tests.unit.protos.generator import printed

# This program compares the current names with a made-up last release, which lacks one RPC, one
# field, one event, one error and one setting. It prints the changelog.
COMPARE = """
from generate import DESCRIPTOR_SET, GEN
from google.protobuf import descriptor_pb2
from new_names import new_names, settings_in, with_new_names
from source import Protos

current = (GEN / DESCRIPTOR_SET).read_bytes()
older = descriptor_pb2.FileDescriptorSet.FromString(current)
files = {each.name.removeprefix("evershell/workspace/v1/"): each for each in older.file}


def remove(elements, name):
    (found,) = [each for each in elements if each.name == name]
    elements.remove(found)


def message(file, name):
    return next(each for each in files[file].message_type if each.name == name)


remove(files["workspace_service.proto"].service[0].method, "GetCaller")
remove(message("task.proto", "Task").field, "metadata")
remove(message("event.proto", "Event").field, "task_limit_approached")
remove(message("error.proto", "Error").enum_type[0].value, "org_on_hold")
released = Protos(older.SerializeToString())
settings = settings_in('''
class Settings(BaseSettings):
    kept: int = 0
    \"\"\"Kept.\"\"\"
    added: int = 0
    \"\"\"The [limit](lifetime.md#retention)
    of all. 0 for none.\"\"\"
''')
names = new_names(Protos(current), released, settings, {"kept"})
before = "# Changelog\\n\\n## [0.1.0]\\n"
print(with_new_names(before, ""), "===", sep="")
print(with_new_names(with_new_names(before, "- other\\n"), names), end="")
"""
EXPECTED = [
    "- The call [GetCaller](docs/calls.md#all-methods)",
    "- `metadata` of `Task`",
    "- The event [`task_limit_approached`](docs/events.md)",
    "- The error [`org_on_hold`](docs/errors.md#org_on_hold)",
    "- The setting [`ADDED`](docs/configuration.md)",
]


def test_new_names_are_in_the_section_unreleased() -> None:
    without, with_names = printed(COMPARE).split("===\n")
    assert without == "# Changelog\n\n## [0.1.0]\n"
    assert with_names.startswith("# Changelog\n\n## [Unreleased]\n\n### New names\n")
    entries = [line for line in with_names.splitlines() if line.startswith("- ")]
    assert [each.partition(": ")[0] for each in entries] == EXPECTED
    assert entries[-1].endswith(": The [limit](docs/lifetime.md#retention) of all.")
    assert with_names.endswith("\n## [0.1.0]\n")
