"""The descriptor set that Envoy's transcoder reads: the edge passes JSON bodies on as they are.

Envoy's parser drops unknown fields, treats null as absent and keeps the last of repeated names. In
this descriptor set, the body of each binding is therefore a `google.api.HttpBody`, which Envoy does
not parse: docs/decisions/0036-unknown-fields.md.
"""

from google.api import annotations_pb2
from google.protobuf import descriptor_pb2
from source import PACKAGE, SERVICE

# Declares the field that holds the body.
_BODY = "RestBody"


def transcoder_descriptors(descriptor_set: bytes) -> bytes:
    """The descriptor set with which the edge reads paths and writes answers.

    Each request of a method with a body gets the field of RestBody.
    """
    files = descriptor_pb2.FileDescriptorSet.FromString(descriptor_set)
    messages = {
        f".{file.package}.{message.name}": message
        for file in files.file
        for message in file.message_type
    }
    body = messages[f".{PACKAGE}.{_BODY}"].field[0]
    for file in files.file:
        file.ClearField("source_code_info")
        for service in file.service:
            if f"{file.package}.{service.name}" != SERVICE:
                continue
            for method in service.method:
                rule = method.options.Extensions[annotations_pb2.http]
                bindings = [one for one in (rule, *rule.additional_bindings) if one.body]
                for binding in bindings:
                    binding.body = body.name
                if bindings:
                    messages[method.input_type].field.append(body)
    return files.SerializeToString(deterministic=True)
