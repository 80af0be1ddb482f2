"""Reads the descriptor set of the protos: options, bindings, error codes and comments.

The sources are the `google.api.http` annotations, the `edge` option of each RPC, the `every_call`
option of the service and the `rule` option of each error code, which also names its RPCs. Paths,
statuses and slugs are therefore written only in the protos.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "evershell.workspace.v1"
SERVICE = f"{PACKAGE}.WorkspaceService"


@dataclass(frozen=True)
class Binding:
    """An HTTP method and a path, and the RPC that they call."""

    rpc: Any
    method: str
    path: str
    has_body: bool
    # The `edge` option of the RPC.
    edge: Any
    # Size limit of a request.
    max_request_bytes: int

    @property
    def streams(self) -> bool:
        """Whether the RPC answers with a stream of events."""
        return bool(self.rpc.server_streaming)

    @property
    def success_status(self) -> int:
        """HTTP status of a successful call."""
        return int(self.edge.success_status)

    @property
    def names_task(self) -> bool:
        """Whether the path names the task, for a method that may also be called without a task."""
        return self.repeat == "if_task_is_named" and "{task_id}" in self.path

    @property
    def repeat(self) -> str:
        """When a failed call can be repeated: a name of Repeat."""
        return repeat_of(self.edge)


@dataclass(frozen=True)
class Rule:
    """The rule of one error code: its representation over gRPC and REST, and its texts."""

    slug: str
    grpc: int
    http: int
    edge_only: bool
    a2a_only: bool
    fallback: bool
    # The first sentence of the code's comment.
    message: str
    # The example in the code's comment.
    example: str
    # The details of an example, as JSON.
    details: str
    # Whether REST answers say that the call must not be repeated.
    no_retry: bool
    # What a caller should do after the error.
    action: str
    # The names of RPCs that can return the error.
    rpcs: tuple[str, ...]
    # Whether every RPC can return the error.
    every_call: bool


class Protos:
    """A descriptor set with its custom options and comments.

    Reads the options with its own pool, so that it does not depend on the code in gen/.
    """

    def __init__(self, descriptor_set: bytes) -> None:
        files = descriptor_pb2.FileDescriptorSet.FromString(descriptor_set).file
        self.pool = descriptor_pool.DescriptorPool()
        self._comments: dict[str, str] = {}
        for file in files:
            self.pool.Add(file)
            self._comments |= _comments(file)

    @property
    def service(self) -> Any:
        """The descriptor of the public service."""
        return self.pool.FindServiceByName(SERVICE)

    @property
    def _every_call(self) -> Any:
        return self.option(self.service.GetOptions(), f"{PACKAGE}.every_call")

    def comment(self, full_name: str) -> str:
        """The comment above an element, without the leading space of its lines; empty if it has
        none.
        """
        return "\n".join(
            line.removeprefix(" ") for line in self._comments.get(full_name, "").splitlines()
        ).strip()

    def option(self, options: Any, extension: str) -> Any:
        """The value of a custom option."""
        known = message_factory.GetMessageClass(
            self.pool.FindMessageTypeByName(options.DESCRIPTOR.full_name)
        )
        message: Any = known.FromString(options.SerializeToString())
        return message.Extensions[self.pool.FindExtensionByName(extension)]

    def bindings(self) -> list[Binding]:
        """All bindings of the service, including additional ones. Some RPCs have none.

        If two paths match a request, the one with a literal segment comes before the one with a
        variable. Raises ValueError if an RPC lacks an option.
        """
        all_bindings = []
        for method in self.service.methods:
            self.access(method)
            http = self.option(method.GetOptions(), "google.api.http")
            edge = self.option(method.GetOptions(), f"{PACKAGE}.edge")
            if not http.WhichOneof("pattern") and not edge.success_status:
                continue
            for rule in (http, *http.additional_bindings):
                verb = rule.WhichOneof("pattern")
                if verb in (None, "custom") or not edge.success_status:
                    raise ValueError(
                        f"{method.full_name} needs a google.api.http pattern and an edge option "
                        "with a success_status"
                    )
                path, limit = getattr(rule, verb), self.max_request_bytes(method)
                all_bindings.append(
                    Binding(method, verb.upper(), path, bool(rule.body), edge, limit)
                )
        return sorted(
            all_bindings,
            key=lambda binding: [
                (segment.startswith("{"), segment) for segment in binding.path.split("/")
            ],
        )

    def repeat(self, method: Any) -> str:
        """When a failed call of this RPC can be repeated: a name of Repeat."""
        return repeat_of(self.option(method.GetOptions(), f"{PACKAGE}.edge"))

    def access(self, method: Any) -> Any:
        """The `access` of this RPC. Raises ValueError if the RPC has none."""
        edge = self.option(method.GetOptions(), f"{PACKAGE}.edge")
        if not edge.HasField("access"):
            raise ValueError(f"{method.full_name} needs `access` in its edge option")
        return edge.access

    def first_methods(self) -> frozenset[str]:
        """The names of the RPCs whose calls are served first."""
        return frozenset(
            method.name
            for method in self.service.methods
            if self.option(method.GetOptions(), f"{PACKAGE}.edge").urgency
        )

    def max_request_bytes(self, method: Any) -> int:
        """Size limit of a request of this RPC: its own, or the one in `every_call`."""
        own = self.option(method.GetOptions(), f"{PACKAGE}.edge").max_request_bytes
        return int(own or self._every_call.max_request_bytes)

    def codes(self) -> dict[str, tuple[int, int]]:
        """The gRPC code and the HTTP status of each slug. Also works for a release whose rules have
        no `rpcs`.
        """
        enum = self.pool.FindEnumTypeByName(f"{PACKAGE}.Error.ErrorCode")
        rules = {
            value.name: self.option(value.GetOptions(), f"{PACKAGE}.rule") for value in enum.values
        }
        return {slug: (rule.grpc, rule.http) for slug, rule in rules.items() if rule.http}

    def rules(self) -> list[Rule]:
        """All error codes that have a rule.

        Raises ValueError if a comment or a rule lacks a part, or if `rpcs` names an unknown RPC.
        """
        enum = self.pool.FindEnumTypeByName(f"{PACKAGE}.Error.ErrorCode")
        names = {method.name for method in self.service.methods}
        all_rules = []
        for value in enum.values:
            rule = self.option(value.GetOptions(), f"{PACKAGE}.rule")
            if rule.http:
                comment = " ".join(self.comment(f"{enum.full_name}.{value.name}").split())
                message, _, example = comment.partition(" Example: ")
                if not message or not example or not rule.action:
                    raise ValueError(
                        f"ErrorCode.{value.name} needs a comment with its meaning, then "
                        "'Example: ' and an example, and an `action` in its rule"
                    )
                if unknown := set(rule.rpcs) - names:
                    missing = ", ".join(sorted(unknown))
                    raise ValueError(
                        f"`rpcs` of ErrorCode.{value.name} names RPCs that do not exist: {missing}"
                    )
                message = message.split(". ")[0].rstrip(".") + "."
                all_rules.append(
                    Rule(
                        value.name,
                        rule.grpc,
                        rule.http,
                        rule.edge_only,
                        rule.a2a_only,
                        rule.fallback,
                        message,
                        example,
                        rule.details,
                        rule.no_retry,
                        rule.action,
                        tuple(rule.rpcs),
                        rule.every_call,
                    )
                )
        return all_rules

    def errors(self, binding: Binding) -> list[Rule]:
        """The errors that the binding's RPC can return, in the order of ErrorCode."""
        return [rule for rule in self.rules() if rule.every_call or binding.rpc.name in rule.rpcs]

    def own_errors(self, method: Any) -> list[str]:
        """The slugs that this RPC, but not every RPC, can return, in the order of ErrorCode."""
        return [rule.slug for rule in self.rules() if method.name in rule.rpcs]


def repeat_of(edge: Any) -> str:
    """When a failed call can be repeated: the name of the value in the option `edge`."""
    values = edge.DESCRIPTOR.enum_types_by_name["Repeat"].values_by_number
    return str(values[edge.repeat].name)


def _comments(file: Any) -> dict[str, str]:
    """The comment above each message, field, enum, value, service and RPC of a file, by full name.

    The full name of a value contains the name of its enum.
    """
    texts = {
        tuple(location.path): location.leading_comments
        for location in file.source_code_info.location
    }
    named = dict(_names(file))
    return {named[path]: text for path, text in texts.items() if path in named and text.strip()}


def _names(file: Any) -> Iterator[tuple[tuple[int, ...], str]]:
    """Yields the path in the file's descriptor and the full name of each element.

    SourceCodeInfo in descriptor.proto defines the paths.
    """
    for index, message in enumerate(file.message_type):
        yield from _names_within(message, (4, index), file.package)
    for index, enum in enumerate(file.enum_type):
        yield from _names_of_enum(enum, (5, index), file.package)
    for index, service in enumerate(file.service):
        name = f"{file.package}.{service.name}"
        yield (6, index), name
        for number, method in enumerate(service.method):
            yield (6, index, 2, number), f"{name}.{method.name}"


def _names_within(
    message: Any, path: tuple[int, ...], scope: str
) -> Iterator[tuple[tuple[int, ...], str]]:
    name = f"{scope}.{message.name}"
    yield path, name
    for index, field in enumerate(message.field):
        yield (*path, 2, index), f"{name}.{field.name}"
    for index, nested in enumerate(message.nested_type):
        yield from _names_within(nested, (*path, 3, index), name)
    for index, enum in enumerate(message.enum_type):
        yield from _names_of_enum(enum, (*path, 4, index), name)


def _names_of_enum(
    enum: Any, path: tuple[int, ...], scope: str
) -> Iterator[tuple[tuple[int, ...], str]]:
    name = f"{scope}.{enum.name}"
    yield path, name
    for index, value in enumerate(enum.value):
        yield (*path, 2, index), f"{name}.{value.name}"
