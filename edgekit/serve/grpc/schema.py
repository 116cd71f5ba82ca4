"""Message classes made from the .proto files beside this module, when they are first needed.

The files are the interface (other languages' clients are made from them), so they are read as they are: what follows
understands the part of the language that they use, and the protobuf library makes the classes. No generated code has
to match the version of that library.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from edgekit._lazy import require

FILES = ("inference.proto", "health.proto")

_TOKEN = re.compile(r'//[^\n]*|\s+|("[^"]*"|[\w.]+|[{}()<>=;,])')
_MAP_ENTRY = re.compile(r"(?:^|_)([a-z0-9])")


@dataclass(frozen=True, slots=True)
class Method:
    """One call of a service: its path, its message classes, and whether it is a stream of them both ways."""

    path: bytes
    request: Any
    response: Any
    streaming: bool


class Schema:
    """The messages and methods of all services, in a pool of their own (a client's may live beside it)."""

    def __init__(self) -> None:
        why = "serve over gRPC"
        factory = require("google.protobuf.message_factory", why=why)
        pool = require("google.protobuf.descriptor_pool", why=why).DescriptorPool()
        services = []
        for file in FILES:
            proto = file_descriptor(file, (Path(__file__).parent / file).read_text())
            added = pool.AddSerializedFile(proto.SerializeToString())
            services += [added.services_by_name[s.name] for s in proto.service]
        self._pool, self._class_of = pool, factory.GetMessageClass
        self.methods = {m.path: m for service in services for m in self._methods(service)}

    def _methods(self, service: Any) -> Iterator[Method]:
        for m in service.methods:
            path = f"/{service.full_name}/{m.name}".encode()
            yield Method(path, self._class_of(m.input_type), self._class_of(m.output_type), bool(m.client_streaming))

    def message(self, name: str) -> Any:
        """The class of a message of the inference protocol, by its name ("ModelInferRequest")."""
        return self._class_of(self._pool.FindMessageTypeByName(f"inference.{name}"))


@lru_cache(maxsize=1)
def schema() -> Schema:
    """The schema, made at the first call (about 20 ms)."""
    return Schema()


def file_descriptor(name: str, text: str) -> Any:
    """The FileDescriptorProto of one .proto file. Raises ValueError where it uses what is not understood here."""
    descriptors = require("google.protobuf.descriptor_pb2", why="serve over gRPC")
    return _Reader(descriptors, text).file(name)


class _Reader:
    """Reads proto3: messages, enums, oneofs, maps and services; no imports, options or reserved names."""

    def __init__(self, descriptors: Any, text: str) -> None:
        self._d = descriptors
        self._tokens = [m.group(1) for m in _TOKEN.finditer(text) if m.group(1)]
        self._at = 0

    def _next(self, wanted: str = "") -> str:
        token = self._tokens[self._at]
        if wanted and token != wanted:
            raise ValueError(f"expected '{wanted}', found '{token}'")
        self._at += 1
        return token

    def _have(self, token: str) -> bool:
        if self._tokens[self._at] != token:
            return False
        self._at += 1
        return True

    def file(self, name: str) -> Any:
        out = self._d.FileDescriptorProto(name=f"edgekit/{name}", syntax="proto3")
        while self._at < len(self._tokens):
            match self._next():
                case "syntax":
                    self._next("=")
                    self._next('"proto3"')
                    self._next(";")
                case "package":
                    out.package = self._next()
                    self._next(";")
                case "message":
                    self._message(out.message_type.add())
                case "enum":
                    self._enum(out.enum_type.add())
                case "service":
                    self._service(out.service.add())
                case other:
                    raise ValueError(f"'{other}' is not understood")
        return out

    def _enum(self, out: Any) -> None:
        out.name = self._next()
        self._next("{")
        while not self._have("}"):
            value = self._next()
            self._next("=")
            out.value.add(name=value, number=int(self._next()))
            self._next(";")

    def _service(self, out: Any) -> None:
        out.name = self._next()
        self._next("{")
        while not self._have("}"):
            self._next("rpc")
            method = out.method.add(name=self._next())
            self._next("(")
            method.client_streaming = self._have("stream")
            method.input_type = self._next()
            self._next(")")
            self._next("returns")
            self._next("(")
            method.server_streaming = self._have("stream")
            method.output_type = self._next()
            self._next(")")
            self._next(";")

    def _message(self, out: Any) -> None:
        out.name = self._next()
        self._next("{")
        while not self._have("}"):
            if self._have("message"):
                self._message(out.nested_type.add())
            elif self._have("enum"):
                self._enum(out.enum_type.add())
            elif self._have("oneof"):
                out.oneof_decl.add(name=self._next())
                self._next("{")
                while not self._have("}"):
                    self._field(out, oneof=len(out.oneof_decl) - 1)
            elif self._have("map"):
                self._map(out)
            else:
                self._field(out)

    def _field(self, out: Any, *, oneof: int | None = None) -> None:
        field = out.field.add()
        field.label = field.LABEL_REPEATED if self._have("repeated") else field.LABEL_OPTIONAL
        self._type(field, self._next())
        field.name = self._next()
        self._next("=")
        field.number = int(self._next())
        self._next(";")
        if oneof is not None:
            field.oneof_index = oneof

    def _map(self, out: Any) -> None:
        """A map is a repeated nested message of keys and values, with a name that the language prescribes."""
        self._next("<")
        key = self._next()
        self._next(",")
        value = self._next()
        self._next(">")
        name = self._next()
        self._next("=")
        entry = _MAP_ENTRY.sub(lambda m: m.group(1).upper(), name) + "Entry"
        field = out.field.add(name=name, number=int(self._next()), type_name=entry)
        self._next(";")
        field.label, field.type = field.LABEL_REPEATED, field.TYPE_MESSAGE
        nested = out.nested_type.add(name=entry)
        nested.options.map_entry = True
        for number, (part, kind) in enumerate((("key", key), ("value", value)), 1):
            item = nested.field.add(name=part, number=number, label=field.LABEL_OPTIONAL)
            self._type(item, kind)

    def _type(self, field: Any, name: str) -> None:
        scalar = getattr(field, f"TYPE_{name.upper()}", None) if name.islower() else None
        if scalar is not None:
            field.type = scalar
        else:
            field.type_name = name  # a message or an enum: the pool finds which
