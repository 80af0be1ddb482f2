"""The codes of a slug never change after a release."""

from tests.unit.protos.generator import printed

COMPARE = """
from generate import changed_codes, released_descriptors
from google.protobuf import descriptor_pb2
from source import Protos

released = released_descriptors()
assert changed_codes(Protos(released), Protos(released)) == []
files = descriptor_pb2.FileDescriptorSet.FromString(released)
(errors,) = [each for each in files.file if each.name.endswith("/error.proto")]
(slugs,) = [each for each in errors.message_type[0].enum_type if each.name == "ErrorCode"]
(conflict,) = [each for each in slugs.value if each.name == "org_on_hold"]
(missing,) = [each for each in slugs.value if each.name == "workspace_not_found"]
conflict.options.CopyFrom(missing.options)
print(*changed_codes(Protos(released), Protos(files.SerializeToString())))
"""


def test_a_slug_keeps_the_codes_that_were_released() -> None:
    assert printed(COMPARE) == "ErrorCode.org_on_hold has other codes than in the last release\n"
