"""The one table of what a service file may say.

Each row is a key: its name, the kind of its value and one sentence. Parser, nearest-key errors, JSON Schema and the
reference in the guide are all made from these rows; defaults are read from the frozen values they fill.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from waybill.deploy.servicefile import Build, Environment, Function, RunSpec, ServiceFile
from waybill.deploy.servicefile_groups import HOMES, Group, Key
from waybill.deploy.servicefile_kinds import (
    DAY,
    HOUR,
    Choice,
    Command,
    Flag,
    Integer,
    ListOf,
    MapOf,
    Text,
    bad,
    duration,
    relative,
    size,
)
from waybill.deploy.servicefile_run import Drivers, RunKind
from waybill.deploy.servicefile_yaml import Faults, Node, shown
from waybill.drivers.model import Health


def name(what: str, example: str, *, letters: str = "a-z0-9-") -> Text:
    """A name of at most 40 lower-case letters, digits and dashes (and what ``letters`` adds)."""
    extra = " and _" if "_" in letters else ""
    return Text(
        words=what,
        example=example,
        pattern=rf"[a-z0-9][{letters}]{{0,39}}(?<!-)",
        rule=f"must be lower-case letters, digits and '-'{extra}, at most 40",
        suggest=lambda text: re.sub(rf"[^{letters}]+", "-", text.lower()).strip("-_")[:40].rstrip("-_"),
    )


def _branch(text: str) -> str:
    if text.startswith("refs/heads/"):
        raise ValueError(f"is a branch without refs/heads/; write {text.removeprefix('refs/heads/')}.")
    if not text or any(letter in " \t\n~^:\\" for letter in text):
        raise ValueError(f"is no branch pattern, such as main or release/*: {shown(text)}.")
    return text


def _pattern(text: str) -> str:
    if text.startswith("!"):
        raise ValueError("is an exclusion, which paths does not know; name what concerns the service.")
    return relative(text) + ("/" if text.endswith("/") else "")


def _variables(text: str) -> str:
    if text.endswith("/") or relative(text) == ".":
        raise ValueError(f"names a file, such as .waybill/production.enc.yml, not {shown(text)}.")
    return relative(text)


def _health(values: dict[str, Any], node: Node, faults: Faults) -> Any:
    if values.get("tcp") is False:
        return bad(faults, node, f"{node.where}.tcp is true or left out; without a check leave health out.")
    if ("path" in values) == ("tcp" in values):
        both = "either path or tcp: true, not both" if "path" in values else "path: /health or tcp: true"
        return bad(faults, node, f"{node.where} needs {both}.")
    values.pop("tcp", None)
    health = Health(**values)
    if health.timeout > health.within:
        default = "" if "timeout" in values else " (the default)"
        probe = f"{TIMEOUT.format(health.timeout)}{default}"
        within = TIMEOUT.format(health.within)
        if "timeout" in values:
            return bad(faults, node, f"{node.where}.timeout ({probe}) is longer than within ({within}).")
        return msgspec.structs.replace(health, timeout=health.within)
    return health


TIMEOUT = duration(0.1, 60.0)
COMMAND = Command()
LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
ENVIRONMENT = name("the name of an environment", "production")
FUNCTION = name("the name of a function", "migrate", letters="a-z0-9_-")
HOOKS = ListOf(words="a list of function names", example="[migrate]", item=FUNCTION)

BUILD = Group(
    title="build",
    example="{command: [make, dist], output: dist/}",
    struct=Build,
    keys=(
        Key("command", COMMAND, "Argument vector that makes the output, run in the folder of this file"),
        Key(
            "output",
            Text(words="a path", example="dist/", convert=relative),
            "Folder or file, relative to the folder of this file, that is packed and sent to the hosts",
        ),
        Key("timeout", duration(1.0, DAY), "How long the build may take"),
        Key("limit", size(1024, 64 * 2**30), "How large the packed output may be"),
    ),
)

HEALTH = Group(
    title="health",
    example="{path: /health, within: 30s}",
    struct=Health,
    keys=(
        Key(
            "path",
            Text(
                words="an HTTP path",
                example="/health",
                pattern=r"/[!-\"$-~]{0,499}",
                rule="must be an HTTP path that begins with '/'",
                suggest=lambda text: "/" + text.lstrip("/"),
                numbers=False,
            ),
            "HTTP path that the new version must answer with 2xx or 3xx",
        ),
        Key("tcp", Flag(), "A TCP connection is proof enough, instead of a path"),
        Key("within", duration(0.1, HOUR), "How long the new version has to answer well"),
        Key("timeout", TIMEOUT, "How long one probe may take; never longer than within"),
    ),
    finish=_health,
)

RUN = Group(
    title="run",
    example="{driver: systemd, command: [./bin/hello], port: 8080}",
    struct=RunSpec,
    keys=(
        Key("driver", Text(words="a driver", example="systemd", numbers=False), "What runs the service on a host"),
        Key("command", COMMAND, "Argument vector of the service, run in the release folder; it listens on $PORT"),
        Key(
            "port",
            Integer(low=1, high=65535, words="a port from 1 to 65535", example="8080"),
            "The port that users connect to; leave it out when the service listens on none",
        ),
        Key("drain", duration(0.0, HOUR), "How long established connections keep after a switch"),
    ),
)

FUNCTIONS = Group(
    title="functions",
    example="{command: [./bin/hello, migrate]}",
    struct=Function,
    keys=(
        Key("command", COMMAND, "Argument vector, run in the release folder with the variables of the environment"),
        Key("timeout", duration(1.0, DAY), "How long it may take before its whole process group is ended"),
        Key("once", Flag(), "One host of a rollout runs it, before any host switches; it stands in before only"),
    ),
)


def environments(drivers: Drivers) -> Group:
    """The keys of one environment."""
    return Group(
        title="environments",
        example="{branches: [main], hosts: {role: web}, run: {…}}",
        struct=Environment,
        keys=(
            Key(
                "branches",
                ListOf(
                    words="a list of branch patterns",
                    example="[main]",
                    item=Text(words="a branch pattern", example="main", convert=_branch),
                ),
                "Patterns of the branches that deploy here; * stands for anything, / too",
            ),
            Key(
                "hosts",
                MapOf(
                    words="a mapping of labels",
                    example="{role: web}",
                    key=Text(words="a label", example="role", pattern=LABEL),
                    value=Text(words="the value of a label", example="web", pattern=LABEL),
                    refusals=(
                        ("list", "hosts are chosen by their labels, not by name: write {role: web}"),
                        ("nothing", "no host is chosen without a label: write {role: web}"),
                    ),
                ),
                "Labels that a host must carry, all of them",
            ),
            Key("run", RunKind(group=RUN, drivers=drivers), "How the service runs here"),
            Key(
                "variables",
                Text(words="a path", example=".waybill/production.enc.yml", convert=_variables),
                "Locked file, relative to the folder of this file, that waybill lock wrote",
            ),
            Key(
                "health",
                HEALTH,
                "How a new version proves itself before any user reaches it; a warning without it",
            ),
            Key(
                "order",
                Choice(choices=("together", "one-by-one")),
                "Whether all hosts switch at once, or each when the one before is live",
            ),
            Key("before", HOOKS, "Functions run on each host before its switch"),
            Key("after", HOOKS, "Functions run on each host after its switch"),
            Key("failed", HOOKS, "Functions run on a host whose new version failed"),
        ),
        # The name is the key that it stands under; the file as a whole fills it in.
        finish=lambda values, _node, _faults: Environment(name="", **values),
    )


def service(drivers: Drivers) -> Group:
    """The keys at the top of the file."""
    return Group(
        title="a service file",
        example="{service: hello, environments: {…}}",
        struct=ServiceFile,
        keys=(
            Key("service", name("the name of a service", "hello"), "Name of the service, unique in its repository"),
            Key("build", BUILD, "How a commit becomes a build, once; without it the tree of the commit is the build"),
            Key(
                "environments",
                MapOf(
                    words="a mapping of environments",
                    example="{production: {…}}",
                    key=ENVIRONMENT,
                    value=environments(drivers),
                ),
                "Where the service runs, by name",
            ),
            Key(
                "functions",
                MapOf(words="a mapping of functions", example="{migrate: {…}}", key=FUNCTION, value=FUNCTIONS),
                "Commands shipped with the commit, by name, that the hooks of environments run",
            ),
            Key(
                "paths",
                ListOf(
                    words="a list of path patterns",
                    example="[api/, libs/*]",
                    item=Text(words="a path pattern", example="api/", convert=_pattern),
                ),
                "Patterns of paths, from the root of the repository, whose change concerns this service",
            ),
        ),
    )


for _group in (FUNCTIONS, HEALTH, RUN, BUILD, environments({}), service({})):
    for _key in _group.keys:
        HOMES[_key.name] = f"{HOMES[_key.name]}, {_group.title}" if _key.name in HOMES else _group.title
