"""How a service runs: the keys that every driver knows, and the options that the named driver declares itself.

An option whose number has a unit says so: ``Annotated[float, Meta(extra={"unit": "seconds"})]`` is written ``30s``,
``{"unit": "bytes"}`` is written ``512MiB``. ``Meta(description=...)`` is its sentence in schema and guide.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, get_args

import msgspec

from waybill.core.plugins import Plugins
from waybill.deploy.servicefile import RunSpec
from waybill.deploy.servicefile_groups import Group, lower
from waybill.deploy.servicefile_kinds import BAD, DAY, Amount, Schema, bad, duration, size
from waybill.deploy.servicefile_yaml import Faults, Node, shown


class HasOptions(Protocol):
    """What the parser asks of a driver."""

    Options: ClassVar[type[msgspec.Struct]]


Drivers = Mapping[str, HasOptions]


def known_drivers() -> Drivers:
    """The drivers of this installation."""
    return Plugins[HasOptions]("waybill.drivers", "DRIVER")


class RunKind(msgspec.Struct, frozen=True, kw_only=True):
    """How the service runs: the keys that every driver knows, and the options of the one that is named."""

    group: Group
    drivers: Drivers

    @property
    def words(self) -> str:
        """How an error calls it."""
        return "a mapping"

    @property
    def example(self) -> str:
        """A short one."""
        return self.group.example

    def read(self, node: Node, faults: Faults) -> Any:
        """The ``RunSpec`` with the driver's own options converted."""
        named = node.get("driver")
        driver = self.drivers.get(named.text) if named and named.type == "text" and named.text in self.drivers else None
        if driver is None:
            # Which options there are depends on the driver; without one only the common keys can be judged.
            common = tuple(entry for entry in node.entries if entry[0].text in self._common())
            self.group.values(msgspec.structs.replace(node, entries=common), faults)
            if named and named.type == "text":
                near = difflib.get_close_matches(named.text, self.drivers, n=1)
                known = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(self.drivers)) or 'none'}."
                faults.add(named, f"there is no driver {shown(named.text)}; {known}")
            return BAD
        fields = {field.encode_name: field for field in msgspec.structs.fields(driver.Options)}
        before = len(faults)
        values = self.group.values(node, faults, fields)
        options = self._options(node, driver, fields, faults)
        if "drain" in values and "port" not in values:
            faults.add(node, f"{node.where} has drain, which connections to a port get; add port or take drain away.")
        if len(faults) > before:
            return BAD
        return RunSpec(**values, options=options)

    def _common(self) -> set[str]:
        return {key.name for key in self.group.keys}

    def _options(self, node: Node, driver: HasOptions, fields: dict[str, Any], faults: Faults) -> Any:
        given = {key.text: item for key, item in node.entries if key.text in fields.keys() - self._common()}
        before = len(faults)
        plain: dict[str, Any] = {}
        for name, item in given.items():
            value = item.plain() if (kind := amount_of(fields[name].type)) is None else kind.read(item, faults)
            if value is BAD:
                continue
            plain[name] = value
            try:
                msgspec.convert(value, fields[name].type)
            except msgspec.ValidationError as error:
                sentence = re.sub(r" - at `\$(.*)`$", r" at \1", str(error))
                faults.add(item, f"{item.where} is {item}: {lower(sentence)}.")
        for name, field in fields.items():
            if field.required and name not in given and name not in self._common():
                faults.add(node, f"{node.where} has no {name!r}, which its driver needs.")
        if len(faults) > before:
            return BAD
        try:
            return msgspec.convert(plain, driver.Options)
        except msgspec.ValidationError as error:  # what __post_init__ of the options refuses
            return bad(faults, node, f"{node.where}: {error}.")

    def schema(self) -> Schema:
        """One alternative for each driver, told apart by its name."""
        choices = []
        for name in sorted(self.drivers):
            choice = self.group.schema()
            own = option_schema(self.drivers[name].Options)
            choice["title"] = f"driver {name}"
            choice["properties"] = (
                own["properties"] | choice["properties"] | {"driver": choice["properties"]["driver"] | {"const": name}}
            )
            choice["required"] = sorted({*choice["required"], *own.get("required", [])})
            choices.append(choice)
        return {"oneOf": choices} if choices else self.group.schema()


def option_schema(options: type[msgspec.Struct]) -> Schema:
    """JSON Schema of a driver's options; descriptions come from ``Meta`` or the Attributes of the docstring."""
    _, components = msgspec.json.schema_components([options], ref_template="{name}")

    def inlined(value: Any) -> Any:
        if isinstance(value, list):
            return [inlined(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "$ref" in value:
            return inlined(components[value["$ref"]])
        return {key: inlined(item) for key, item in value.items()}

    schema: Schema = inlined(components[options.__name__])
    told = _attributes(options.__doc__ or "")
    for field in msgspec.structs.fields(options):
        option = schema["properties"][field.encode_name]
        default = option.pop("default", None)
        description = option.pop("description", told.get(field.name))
        if (kind := amount_of(field.type)) is not None:
            option = kind.schema() | {"title": kind.words.removeprefix("a ")}
            default = None if default is None else kind.format(default)
        option |= {"description": description} if description else {}
        schema["properties"][field.encode_name] = option | ({} if default is None else {"default": default})
    return schema


def _attributes(docstring: str) -> dict[str, str]:
    _, _, section = inspect.cleandoc(docstring).partition("Attributes:\n")
    section = section.split("\n\n")[0].replace("``", "`")
    entries = re.split(r"^    (?=\w+: )", section, flags=re.MULTILINE)[1:]
    return {name: " ".join(words.split()) for name, _, words in (entry.partition(":") for entry in entries)}


def amount_of(annotation: Any) -> Amount | None:
    """The kind of an option annotated ``Meta(extra={"unit": "seconds"})`` or ``"bytes"``, None for any other."""
    for part in (annotation, *get_args(annotation)):
        for meta in getattr(part, "__metadata__", ()):
            unit = (getattr(meta, "extra", None) or {}).get("unit")
            if unit == "seconds":
                return duration(0, DAY)
            if unit == "bytes":
                return size(1, 2**40)
    return None
