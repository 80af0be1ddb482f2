"""Writes the methods of the Python client that only make a call: their arguments are the fields of
the request, and they return a result.

`make gen` derives the synchronous methods from them (.make/sync_client.py).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import (
    Descriptor,
    EnumDescriptor,
    FieldDescriptor,
    MethodDescriptor,
)
from python_errors import error_class
from python_results import Results
from python_text import METHODS, Texts, docstring, method_name, section, summarized
from source import PACKAGE, Protos

# The RPCs for which no method is generated. The methods in tasks.py, which do more than a call, are
# written by hand. StreamEvents and StreamOrganization are only for REST.
BY_HAND = (
    "CancelTask",
    "CancelTasks",
    "ResumeWorkspaces",
    "WatchEvents",
    "StreamEvents",
    "ListEvents",
    "WatchOrganization",
    "StreamOrganization",
)
# The optional arguments that callers may pass by position, by RPC.
_POSITIONAL = {"CreateWorkspace": ("name",)}
_KEY = (
    "1 to 255 printable ASCII characters. For 24 hours, a call of the same user or API key with "
    "this key and the same request has no effect and gets the first answer. None for a new key: "
    "then only the repeats of this call share it."
)
_PAGES = {
    "page_size": "The number of items in one answer, 1 to 200. None for the default, 50.",
    "page_token": "The `next_page_token` of the previous page. None begins with the first page.",
}
_IMPORTS = """\
from collections.abc import Iterable, Mapping
from datetime import datetime

from evershell.client._async.caller import AsyncCaller, AsyncPages
from evershell.client._calls import (
    Seconds,
    call,
    duration,
    idempotent,
    many,
    names,
    nested,
    only,
    optional,
    optional_ids,
    page,
    timestamp,
    with_id,
)
"""
_PLAIN = '''

class AsyncPlainCalls(AsyncCaller):
    """The calls of the client that only ask and answer."""
'''
_WEBHOOKS = '''

class AsyncWebhooks:
    """The webhooks of the caller's organization: `client.webhooks`.

    All calls except `list` and `deliveries` need the scope `webhooks:write`. With only
    `workspace:read:own`, they change only webhooks that the caller created.
    """

    def __init__(self, caller: AsyncCaller) -> None:
        self._caller = caller
'''


@dataclass(frozen=True)
class _Argument:
    """An argument of a method, and the value that it gives a field of the request."""

    name: str
    annotation: str
    # The default as an expression; empty if the argument is required.
    default: str
    value: str
    text: str
    positional: bool = False

    @property
    def declared(self) -> str:
        return f"{self.name}: {self.annotation}{self.default and f' = {self.default}'}"


class Calls:
    """Writes the modules with the methods."""

    def __init__(self, protos: Protos, results: Results) -> None:
        self._protos = protos
        self._results = results
        self._texts = Texts(protos)
        self._messages = {rule.slug: rule.message for rule in protos.rules()}

    def text(self, owner: str) -> str:
        """The text of the module with the methods of the client, or of its `webhooks`."""
        methods = [
            method
            for method in self._protos.service.methods
            if method.name not in BY_HAND and method_name(method.name).rpartition(".")[0] == owner
        ]
        summary = f"The calls about {owner}." if owner else "The calls that only ask and answer."
        parts = [
            f'"""{summary}"""\n\n# Written by `make gen` from protos/. Do not edit.\n\n',
            _IMPORTS,
            *sorted(set(self._imports(methods))),
            _WEBHOOKS if owner else _PLAIN,
            *(self._method(method, "self._caller." if owner else "self.") for method in methods),
        ]
        return "".join(parts)

    def _imports(self, methods: list[MethodDescriptor]) -> Iterator[str]:
        """Yields the imports of the classes of results and of arguments."""
        for method in methods:
            kinds: list[Descriptor | EnumDescriptor] = [self._result(method)]
            kinds += [
                kind
                for each in method.input_type.fields
                for kind in (each.message_type, each.enum_type)
                if kind is not None and kind.file.package == PACKAGE and "Entry" not in kind.name
            ]
            for kind in kinds:
                module = self._results.module(kind)
                yield f"from evershell.client.{module} import {self._results.name(kind)}\n"

    def _result(self, method: MethodDescriptor) -> Descriptor:
        """The message of the result; for a list, the message of its items."""
        answer = method.output_type
        many = self._many(answer)
        return many.message_type if many is not None and many.message_type else answer

    @staticmethod
    def _many(answer: Descriptor) -> FieldDescriptor | None:
        """The field with the items of an answer that is a list; None for other answers."""
        items = [each for each in answer.fields if each.is_repeated]
        others = {each.name for each in answer.fields} - {each.name for each in items}
        is_list = answer.name.startswith("List") and len(items) == 1
        return items[0] if is_list and others <= {"next_page_token"} else None

    def _method(self, method: MethodDescriptor, owner: str) -> str:
        name = method_name(method.name).rpartition(".")[2]
        answer, result = method.output_type, self._results.name(self._result(method))
        items, arguments = self._many(answer), list(self._arguments(method))
        is_paged = "next_page_token" in answer.fields_by_name
        fields = [f"{each.name}={each.value}" for each in arguments if each.value]
        positional = [each.declared for each in arguments if each.positional]
        keywords = [each.declared for each in arguments if not each.positional]
        declared = ", ".join(["self", *positional, *(["*", *keywords] if keywords else [])])
        if is_paged:
            assert items is not None
            made = [
                f'"{method.name}"',
                f'page("{items.name}", {result})',
                "page_size",
                "page_token",
            ]
            head = f"    def {name}({declared}) -> AsyncPages[{result}]:\n"
            body = f"        return {owner}_pages({', '.join(made + fields)})\n"
        else:
            if items is not None:
                decode, returned = f'many("{items.name}", {result})', f"tuple[{result}, ...]"
            else:
                has_id = self._results.answers(answer)
                decode, returned = f"{'with_id' if has_id else 'only'}({result})", result
            made = [f'"{method.name}"', decode]
            made += ["idempotent(idempotency_key)"] if self._has_key(method) else []
            head = f"    async def {name}({declared}) -> {returned}:\n"
            body = f"        return await {owner}_call(call({', '.join(made + fields)}))\n"
        text = self._docstring(method, arguments, is_paged=is_paged)
        return f"\n{head}{docstring(text, 8)}\n{body}"

    def _has_key(self, method: MethodDescriptor) -> bool:
        return self._protos.repeat(method) == "with_idempotency_key"

    def _arguments(self, method: MethodDescriptor) -> Iterator[_Argument]:
        """Yields the arguments. The positional arguments come first."""
        http = self._protos.option(method.GetOptions(), "google.api.http")
        rules = [each for each in (http, *http.additional_bindings) if each.WhichOneof("pattern")]
        paths = [getattr(each, each.WhichOneof("pattern")) for each in rules]
        arguments = []
        for field in method.input_type.fields:
            if field.name in _PAGES:
                continue
            in_path = [f"{{{field.name}}}" in path for path in paths]
            is_needed = all(in_path) or self._is_required(field)
            is_positional = in_path[0] or is_needed
            is_positional |= field.name in _POSITIONAL.get(method.name, ())
            annotation, default, value = self._value(field, is_needed, bool(http.get))
            text = self._texts.with_limits(field)
            text = re.sub(r"\b(absent|Absent)\b", "None", text)
            arguments.append(
                _Argument(field.name, annotation, default, value, text, positional=is_positional)
            )
        if "page_token" in method.input_type.fields_by_name:
            kinds = {"page_size": "int | None", "page_token": "str | None"}
            arguments += [
                _Argument(name, kinds[name], "None", "", text) for name, text in _PAGES.items()
            ]
        if self._has_key(method):
            arguments.append(_Argument("idempotency_key", "str | None", "None", "", _KEY))
        yield from sorted(arguments, key=lambda each: not each.positional)

    def _is_required(self, field: FieldDescriptor) -> bool:
        behaviors = self._protos.option(field.GetOptions(), "google.api.field_behavior")
        names = self._protos.pool.FindEnumTypeByName("google.api.FieldBehavior").values_by_number
        return "REQUIRED" in {names[number].name for number in behaviors}

    def _value(
        self, field: FieldDescriptor, is_needed: bool, is_read: bool
    ) -> tuple[str, str, str]:
        """The annotation of an argument, its default, and the value of the field."""
        name, rule = field.name, self._rule(field)
        inner = field.message_type
        if field.enum_type is not None:
            kind = self._results.name(field.enum_type)
            return f"Iterable[{kind} | str]", "", f'names("{name}", {name}, {kind})'
        if inner is not None and inner.GetOptions().map_entry:
            return "Mapping[str, str] | None", "None", name
        if inner is not None and inner.name == "Timestamp":
            return "datetime | None", "None", f'timestamp("{name}", {name})'
        if inner is not None and inner.name == "Duration":
            return "Seconds | None", "None", f'duration("{name}", {name})'
        if inner is not None:
            return f"{self._results.name(inner)} | None", "None", f'nested("{name}", {name})'
        if field.type == field.TYPE_BOOL:
            return "bool", "False", name
        if field.type != field.TYPE_STRING:
            if rule.HasField("default_value"):
                return "int | None", "None", f"{name} or 0"
            return "int", "0", name
        if field.is_repeated:
            return "Iterable[str] | None", "None", f'optional_ids("{name}", {name})'
        if is_needed:
            return "str", "", name
        if is_read or rule.is_id:
            return "str | None", "None", f'optional("{name}", {name})'
        return "str", '""', name

    def _rule(self, field: FieldDescriptor) -> Any:
        return self._protos.option(field.GetOptions(), f"{PACKAGE}.field")

    def _docstring(
        self, method: MethodDescriptor, arguments: list[_Argument], *, is_paged: bool
    ) -> str:
        summary, _, more = self._texts.comment(method.full_name).partition("\n\n")
        paragraphs = summarized(summary).split("\n\n")
        paragraphs += _labelled(more)
        if arguments:
            paragraphs.append(section("Args", [(each.name, each.text) for each in arguments]))
        paragraphs.append(section("Returns", [("", self._returns(method, is_paged=is_paged))]))
        raised = " Raised by the iteration." if is_paged else ""
        errors = [
            (error_class(slug), self._messages[slug] + raised)
            for slug in self._protos.own_errors(method)
        ]
        last = "Any other failure." if errors else "The call has failed."
        paragraphs.append(section("Raises", [*errors, ("CallError", last + raised)]))
        return "\n\n".join(paragraphs)

    def _returns(self, method: MethodDescriptor, *, is_paged: bool) -> str:
        if is_paged:
            return "The items, which are fetched page by page during the iteration."
        many = self._many(method.output_type)
        if many is not None:
            return self._texts.comment(many.full_name) or "All of them."
        comment = " ".join(self._texts.comment(method.output_type.full_name).split())
        return (
            f"{self._results.name(method.output_type)}: {comment.partition('. ')[0].rstrip('.')}."
        )


def _labelled(text: str) -> list[str]:
    """The parts of the comment of an RPC that say more than its signature does."""
    parts = re.split(r"\n(?=Effect:|Idempotency:|Errors:|Flow:|Tree:|Success:|Needs )", text)
    parts = [" ".join(part.split()) for part in parts]
    dull = (
        "",
        "Effect: none.",
        "Effect: none. Idempotency: a read.",
        "Idempotency: a read.",
        "Errors: only the ones that every call can return.",
    )
    # Leaves out the part about idempotency keys, because the docstring describes the argument
    # `idempotency_key`.
    return [
        part
        for part in parts
        if part not in dull and not part.startswith("Idempotency: by the header")
    ]


def owners() -> list[str]:
    """The names of the objects that have methods: "" for the client itself, and the names of its
    attributes, such as `webhooks`.
    """
    return sorted({"", *(name.rpartition(".")[0] for name in METHODS.values())})
