"""JSON Schema and reference tables of the service file, made from the table of its keys."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from waybill.deploy.servicefile_groups import Group, Key, default_text
from waybill.deploy.servicefile_keys import BUILD, FUNCTIONS, HEALTH, RUN, environments, service
from waybill.deploy.servicefile_kinds import Schema
from waybill.deploy.servicefile_run import Drivers, known_drivers, option_schema

NAME = "waybill.schema.json"


def schema(drivers: Drivers | None = None) -> Schema:
    """JSON Schema, draft 2020-12, of a service file; what two keys must agree on it cannot say."""
    described = service(known_drivers() if drivers is None else drivers).schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Waybill service file",
        "description": "What is deployed, from which branches, to which hosts, and how it runs there.",
    } | described


def text(drivers: Drivers | None = None) -> str:
    """The schema as ``waybill schema`` prints it and docs/reference keeps it."""
    return json.dumps(schema(drivers), indent=2, ensure_ascii=False) + "\n"


def reference(drivers: Drivers | None = None) -> str:
    """The tables of the guide, in Markdown."""
    drivers = known_drivers() if drivers is None else drivers
    groups = [
        ("At the top", service(drivers)),
        ("`build`", BUILD),
        ("`environments.<name>`", environments(drivers)),
        ("`environments.<name>.run`", RUN),
        ("`environments.<name>.health`", HEALTH),
        ("`functions.<name>`", FUNCTIONS),
    ]
    parts = [_table(title, (_row(group, key) for key in group.keys)) for title, group in groups]
    besides = "`environments.<name>.run` with driver `{}`, besides"
    parts += [_table(besides.format(name), _options(drivers[name].Options)) for name in sorted(drivers)]
    return "\n".join(parts)


def _table(title: str, rows: Iterator[tuple[str, str, str, str]]) -> str:
    lines = [f"### {title}", "", "| Key | Value | Without it | Meaning |", "| --- | --- | --- | --- |"]
    return "\n".join([*lines, *(f"| `{key}` | {value} | {default} | {doc} |" for key, value, default, doc in rows), ""])


def _row(group: Group, key: Key) -> tuple[str, str, str, str]:
    default = default_text(key, group.default(key))
    without = "required" if group.required(key) else _shown(default)
    value = f"{key.kind.words}: `{key.kind.example}`"
    return key.name, value, without, key.doc


def _options(options: Any) -> Iterator[tuple[str, str, str, str]]:
    described = option_schema(options)
    for name, option in described["properties"].items():
        without = "required" if name in described.get("required", ()) else _shown(option.get("default"))
        yield name, _option_words(option), without, option.get("description", "").rstrip(".")


def _option_words(option: Schema) -> str:
    if "enum" in option:
        return " or ".join(f"`{choice}`" for choice in option["enum"])
    if "anyOf" in option:
        return " or ".join(_option_words(choice) for choice in option["anyOf"] if choice.get("type") != "null")
    units = {"duration": "a duration: `30s`", "size": "a size: `512MiB`"}
    types = {"integer": "a whole number", "string": "a text", "boolean": "true or false", "object": "a mapping"}
    return units.get(option.get("title", "")) or types.get(option.get("type", ""), "any value")


def _shown(default: Any) -> str:
    if default is None or default in ({}, [], ()):
        return ""
    return f"`{default if isinstance(default, str) else json.dumps(default)}`"
