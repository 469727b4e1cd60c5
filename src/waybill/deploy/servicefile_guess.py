"""Guesses from the files of a repository how it is built and started; one function for each kind of project."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import msgspec

VENDOR = "env", "PYTHONPATH=vendor"
MODULES = ("app.py", "main.py", "server.py", "wsgi.py", "asgi.py")
PROJECT_FILES = ("pyproject.toml", "requirements.txt", "package.json", "go.mod", "Cargo.toml", "Makefile")
READ = (*PROJECT_FILES, "Procfile", "Dockerfile", *MODULES)
"""The files whose text a guess looks into."""


class Tree(msgspec.Struct, frozen=True, kw_only=True):
    """What a guess sees of a repository.

    Attributes:
        name: Of its folder.
        branch: Its default branch.
        files: All paths.
        texts: Text of those files of ``READ`` that are there.
    """

    name: str
    branch: str
    files: frozenset[str]
    texts: dict[str, str] = {}


class Guess(msgspec.Struct, frozen=True, kw_only=True):
    """How a project is built and started.

    Attributes:
        run: Argument vector of the service.
        build: Argument vector of the build; empty when the tree is the build.
        output: What the build makes.
        port: That users connect to.
        health: As the file writes it. A TCP connection is all that every server answers.
        name: The project's own name, when it says one.
        assumed: Sentences about what was guessed.
    """

    run: tuple[str, ...]
    build: tuple[str, ...] = ()
    output: str = "."
    port: int = 8080
    health: str = "{tcp: true, within: 30s}"
    name: str = ""
    assumed: tuple[str, ...] = ()

    def but(self, **changes: Any) -> Guess:
        """The same with some fields changed."""
        return msgspec.structs.replace(self, **changes)


def guess(tree: Tree) -> tuple[str, Guess | None]:
    """The template that suits, and what fills it; None when nothing is known of the project."""
    for template, project in PROJECTS:
        found = project(tree)
        if found is not None:
            return template, _told(tree, found)
    started = _told(tree, Guess(run=()))
    return ("minimal", started) if started.run else ("minimal", None)


def _told(tree: Tree, found: Guess) -> Guess:
    """What Procfile and Dockerfile say outright beats a guess."""
    if web := re.search(r"^web:\s*(\S.*)$", tree.texts.get("Procfile", ""), re.MULTILINE):
        run = _shell(web[1].strip(), vendor="vendor" in found.build)
        found = found.but(run=run, assumed=(*found.assumed, "The start command is the web line of the Procfile."))
    docker = tree.texts.get("Dockerfile", "")
    if port := re.findall(r"^EXPOSE\s+(\d{1,5})", docker, re.MULTILINE | re.IGNORECASE):
        number = int(port[-1])
        if 0 < number < 65536:
            found = found.but(port=number, assumed=(*found.assumed, "The port is the one that the Dockerfile exposes."))
    command = re.findall(r"^CMD\s+(\[.*\])\s*$", docker, re.MULTILINE | re.IGNORECASE)
    if command and not found.run:
        parts = _json(command[-1])
        if isinstance(parts, list) and parts and all(isinstance(part, str) and part for part in parts):
            note = "The start command is the Dockerfile's CMD, run on the host itself."
            found = found.but(run=tuple(parts), assumed=(*found.assumed, note))
    return found


def _python(tree: Tree) -> Guess | None:
    project = _toml(tree.texts.get("pyproject.toml", "")).get("project")
    project = project if isinstance(project, dict) else {}
    modules: list[str] = [name for name in MODULES if name in tree.files]
    if not ({"pyproject.toml", "requirements.txt", "setup.py", "manage.py"} & tree.files or modules):
        return None
    assumed: tuple[str, ...] = ()
    build: tuple[str, ...] = ()
    install = ("python3", "-m", "pip", "install", "--target", "vendor")
    if "requirements.txt" in tree.files:
        build = (*install, "-r", "requirements.txt")
    elif {"pyproject.toml", "setup.py"} & tree.files:
        build = (*install, ".")
    if build:
        assumed = ("The build puts the packages into vendor/, so hosts need Python and nothing else.",)
    wanted = f"{tree.texts.get('requirements.txt', '')} {project.get('dependencies', '')}".lower()
    starts = chain(_django(tree, wanted), _framework(tree, modules, wanted), _module(tree, project, modules))
    line, note = next(starts, ("app.py", "Nothing says how it starts; write it into run.command."))
    if isinstance(line, str):  # only a shell fills in $PORT
        path = "PYTHONPATH=vendor " if build else ""
        run: tuple[str, ...] = ("sh", "-c", f"{path}exec python3 {line}") if "$PORT" in line else ("python3", line)
    else:
        run = ("python3", *line)
    run = (*VENDOR, *run) if build and run[0] != "sh" else run
    name = project.get("name")
    return Guess(run=run, build=build, name=name if isinstance(name, str) else "", assumed=(*assumed, note))


Start = tuple[str | tuple[str, ...], str]
"""What follows ``python3``, and a sentence that tells it. It listens on all addresses: users are redirected to it."""


def _django(tree: Tree, wanted: str) -> Iterator[Start]:
    wsgi = sorted(path for path in tree.files if re.fullmatch(r"\w+/wsgi\.py", path))
    if "manage.py" in tree.files and wsgi and "gunicorn" in wanted:
        yield ("-m", "gunicorn", wsgi[0][:-3].replace("/", ".")), "It is a Django project, run by gunicorn."
    if "manage.py" in tree.files:
        line = 'manage.py runserver --noreload "0.0.0.0:$PORT"'
        yield line, "It is a Django project, run by its development server; add gunicorn for real users."


def _framework(tree: Tree, modules: list[str], wanted: str) -> Iterator[Start]:
    for file in modules:
        text = tree.texts.get(file, "")
        made = re.search(r"^(\w+)\s*(?::.*)?=\s*(FastAPI|Starlette|Litestar|Flask)\(", text, re.MULTILINE)
        if made is None:
            continue
        target = f"{file[:-3]}:{made[1]}"
        if made[2] != "Flask":
            yield f'-m uvicorn {target} --host 0.0.0.0 --port "$PORT"', f"uvicorn serves {target}."
        elif "gunicorn" in wanted:
            yield ("-m", "gunicorn", target), f"gunicorn serves {target}; it reads $PORT by itself."
        else:
            yield f'-m flask --app {target} run --host 0.0.0.0 --port "$PORT"', f"flask serves {target}."


def _module(tree: Tree, project: dict[str, Any], modules: list[str]) -> Iterator[Start]:
    packages = (re.fullmatch(r"(?:src/)?(\w+)/__main__\.py", path) for path in sorted(tree.files))
    for package in packages:
        if package is not None:
            yield ("-m", package[1]), f"python3 -m {package[1]} starts it."
    for file in modules:
        yield (file,), f"python3 {file} starts it."
    for target in _mapping(project, "scripts").values():
        if isinstance(target, str) and re.fullmatch(r"[\w.]+:\w+", target):
            module, _, function = target.partition(":")
            line = f"import sys; from {module} import {function}; sys.exit({function}())"
            yield ("-c", line), f"{target}, a script of pyproject.toml, starts it."


def _node(tree: Tree) -> Guess | None:
    if "package.json" not in tree.files:
        return None
    package = _json(tree.texts.get("package.json", ""))
    package = package if isinstance(package, dict) else {}
    scripts = {name: line for name, line in _mapping(package, "scripts").items() if isinstance(line, str)}
    tool, install = "npm", ["npm", "install"]
    for lock, name, words in (
        ("package-lock.json", "npm", ["npm", "ci"]),
        ("yarn.lock", "yarn", ["yarn", "install", "--frozen-lockfile"]),
        ("pnpm-lock.yaml", "pnpm", ["pnpm", "install", "--frozen-lockfile"]),
    ):
        if lock in tree.files:
            tool, install = name, words
    wants = bool(_mapping(package, "dependencies") or _mapping(package, "devDependencies"))
    build: tuple[str, ...] = tuple(install) if wants else ()
    if "build" in scripts:
        build = ("sh", "-c", f"{shlex.join(install)} && {tool} run build")
    given = package.get("name")
    found = Guess(run=(tool, "start"), build=build, name=given.rpartition("/")[2] if isinstance(given, str) else "")
    if "start" in scripts:
        plain = re.fullmatch(r"node [\w./ =-]+", scripts["start"])
        run = tuple(scripts["start"].split()) if plain else (tool, "start")
        return found.but(run=run, assumed=("The start script of package.json starts it.",))
    if "build" in scripts and "main" not in package:
        output = "build/" if "react-scripts" in json.dumps(package) else "dist/"
        served = pages(".")
        return found.but(
            run=served.run, health=served.health, output=output, assumed=(f"The build writes web pages to {output}",)
        )
    main = package.get("main")
    entry: str = main if isinstance(main, str) and main else "server.js"
    if main is None:
        entry = next((file for file in ("server.js", "index.js", "app.js") if file in tree.files), entry)
    return found.but(run=("node", entry), assumed=(f"node {entry} starts it.",))


def _go(tree: Tree) -> Guess | None:
    if "go.mod" not in tree.files:
        return None
    module = re.search(r"^module\s+(\S+)", tree.texts.get("go.mod", ""), re.MULTILINE)
    name = re.sub(r"/v\d+$", "", module[1]).rpartition("/")[2] if module else tree.name
    commands = sorted(match[1] for path in tree.files if (match := re.fullmatch(r"cmd/([\w-]+)/main\.go", path)))
    package = "."
    if "main.go" not in tree.files and commands:
        name = name if name in commands else commands[0]
        package = f"./cmd/{name}"
    name = _plain(name)
    build = ("go", "build", "-o", f"dist/{name}", package)
    note = f"go build makes one program from {package}."
    return Guess(run=(f"./{name}",), build=build, output="dist/", name=name, assumed=(note,))


def _rust(tree: Tree) -> Guess | None:
    if "Cargo.toml" not in tree.files:
        return None
    package = _mapping(_toml(tree.texts.get("Cargo.toml", "")), "package")
    given = package.get("name")
    name = _plain(given) if isinstance(given, str) and given else "server"
    build = ("cargo", "build", "--release", *(["--locked"] if "Cargo.lock" in tree.files else []))
    note = f"cargo makes the program {name}."
    return Guess(run=(f"./{name}",), build=build, output=f"target/release/{name}", name=name, assumed=(note,))


def _static(tree: Tree) -> Guess | None:
    folders = [folder for folder in (".", "public", "site", "www", "html", "dist") if _index(folder) in tree.files]
    return pages(folders[0]) if folders else None


def _index(folder: str) -> str:
    return "index.html" if folder == "." else f"{folder}/index.html"


def pages(folder: str) -> Guess:
    """Web pages in a folder of the release, served as they are."""
    where = "" if folder == "." else f" --directory {folder}"
    line = f'exec python3 -m http.server{where} "$PORT"'
    note = f"The pages in {folder} are served as they are, by Python's own small server."
    return Guess(run=("sh", "-c", line), health="{path: /, within: 30s}", assumed=(note,))


def _make(tree: Tree) -> Guess | None:
    targets = re.findall(r"^([a-z][\w-]*)\s*:(?!=)", tree.texts.get("Makefile", ""), re.MULTILINE)
    target = next((name for name in ("dist", "build", "all") if name in targets), None)
    if target is None:
        return None
    name = _plain(tree.name)
    note = f"make {target} builds it, and ./bin/{name} starts it."
    output = "dist/" if target == "dist" else "."
    return Guess(run=(f"./bin/{name}",), build=("make", target), output=output, assumed=(note,))


PROJECTS: tuple[tuple[str, Callable[[Tree], Guess | None]], ...] = (
    ("go", _go), ("rust", _rust), ("node", _node), ("python", _python), ("static", _static), ("make", _make),
)  # fmt: skip
"""Tried in this order: a page or a Makefile stands in many projects and says the least."""


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "-", name)


def _shell(line: str, *, vendor: bool) -> tuple[str, ...]:
    try:
        parts = tuple(shlex.split(line))
    except ValueError:
        parts = ()
    if not parts or re.search(r"[|&;<>$`*?~]|^\w+=", line):
        return ("sh", "-c", f"{'export PYTHONPATH=vendor; ' if vendor else ''}exec {line}")
    return (*VENDOR, *parts) if vendor else parts


def _toml(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError):
        return {}


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _mapping(value: dict[str, Any], key: str) -> dict[str, Any]:
    found = value.get(key)
    return found if isinstance(found, dict) else {}
