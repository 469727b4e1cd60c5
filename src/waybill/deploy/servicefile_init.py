"""Drafts a first ``waybill.yml`` from what a repository holds. Pure: the caller reads the files.

A draft is a guess that is told: each assumption is a sentence, and the file that comes out is short, passes the
parser and can be edited. Templates are files in ``templates/``, filled with the draft's values.
"""

from __future__ import annotations

import re
from importlib import resources
from string import Template

import msgspec

from waybill.deploy.servicefile_guess import Guess, Tree, guess, pages
from waybill.deploy.servicefile_kinds import flow

STARTS: dict[str, tuple[str, Guess]] = {
    "python": (
        "a Python server, its packages beside it",
        Guess(
            run=("env", "PYTHONPATH=vendor", "python3", "app.py"),
            build=("python3", "-m", "pip", "install", "--target", "vendor", "-r", "requirements.txt"),
        ),
    ),
    "node": ("a Node.js server", Guess(run=("node", "server.js"), build=("npm", "ci"))),
    "go": ("a Go program", Guess(run=("./server",), build=("go", "build", "-o", "dist/server", "."), output="dist/")),
    "rust": (
        "a Rust program",
        Guess(run=("./server",), build=("cargo", "build", "--release"), output="target/release/server"),
    ),
    "static": (
        "a folder of web pages",
        pages("."),
    ),
    "make": ("whatever make dist builds", Guess(run=("./bin/server",), build=("make", "dist"), output="dist/")),
    "minimal": ("a program that is in the repository already", Guess(run=("./run",))),
}
"""What each template starts with when no repository says otherwise."""


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """A file to be written.

    Attributes:
        template: Name of the template it comes from.
        service: Name of the service.
        branch: The branch that deploys to production.
        text: The whole file.
        assumed: Sentences for the person who reads it first.
    """

    template: str
    service: str
    branch: str
    text: str
    assumed: tuple[str, ...]


def draft(tree: Tree) -> Draft:
    """The service file that suits a repository."""
    template, found = guess(tree)
    if found is None:
        template, found = "minimal", STARTS["minimal"][1]
        found = found.but(assumed=("Nothing here says how the service starts; write it into run.command.",))
    return _fill(template, tree, found)


def start(template: str, tree: Tree) -> Draft:
    """An empty service file of a template, with the repository's name and branch."""
    return _fill(template, tree, STARTS[template][1])


def _fill(template: str, tree: Tree, found: Guess) -> Draft:
    service = slug(found.name or tree.name)
    text = (resources.files("waybill.deploy") / "templates" / f"{template}.yml").read_text()
    build = "# build: nothing; the tree of the commit is sent to the hosts as it is"
    if found.build:
        build = f"build: {{command: {flow(found.build)}, output: {found.output}}}"
    filled = Template(text).substitute(
        service=_plain(service),
        branch=_plain(tree.branch),
        build=build,
        run=flow(found.run),
        port=found.port,
        health=found.health,
    )
    assumed = (
        *found.assumed,
        f"Branch {tree.branch} deploys to production, on hosts labelled role: web.",
        f"Users connect to port {found.port}; the service listens on $PORT of all addresses, which waybill shields.",
    )
    return Draft(template=template, service=service, branch=tree.branch, text=filled, assumed=assumed)


def _plain(text: str) -> str:
    """A text as YAML takes it for one: a folder may be called ``false``."""
    return flow([text])[1:-1]


def slug(text: str) -> str:
    """A name that a service may have, near a text; ``service`` when nothing of it is left."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40].rstrip("-") or "service"
