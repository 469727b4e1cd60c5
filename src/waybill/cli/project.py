"""``waybill init``, ``waybill check`` and ``waybill schema``: the service file of the repository one stands in."""

from __future__ import annotations

import json as jsonlib
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from waybill.core.errors import ConflictError, InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from waybill.deploy.servicefile import ServiceFile
    from waybill.deploy.servicefile_guess import Tree
    from waybill.deploy.servicefile_yaml import Fault

MAX_LISTED = 200_000


def init(
    *,
    template: str = "",
    listing: Annotated[bool, Parameter(name="--list", negative=())] = False,
    force: Annotated[bool, Parameter(negative=())] = False,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Write a working waybill.yml for the repository you stand in.

    Args:
        template: Start an empty one of this name instead of looking at the repository.
        listing: List the templates and write nothing.
        force: Replace a service file that is there.
        json: Print what was written and assumed as JSON.
    """
    from waybill.deploy.servicefile_init import STARTS, draft, start

    if listing:
        summaries = {name: summary for name, (summary, _) in STARTS.items()}
        lines = [f"{name:<8} {summary}" for name, summary in summaries.items()]
        print(jsonlib.dumps(summaries) if json else "\n".join(lines))
        return
    if template and template not in STARTS:
        raise NotFoundError(f"there is no template {template!r}.", f"There are: {', '.join(STARTS)}.")
    folder = Path.cwd()
    target = _target(folder, force=force)
    tree = _tree(folder)
    made = _checked(start(template, tree) if template else draft(tree), tree, target.name)
    target.write_text(made.text)
    following = f'git add {target.name} && git commit -m "Deploy with waybill" && git push'
    if json:
        told = {"path": target.name, "service": made.service, "template": made.template, "assumed": made.assumed}
        print(jsonlib.dumps(told | {"next": following}))
        return
    print(f"Wrote {target.name} for the service {made.service} ({made.template}). Assumed:")
    print("\n".join(f"  - {sentence}" for sentence in made.assumed))
    print(f"Read it, change what is not so, and ask: waybill check\nThen:  {following}")


def check(path: Path = Path(), /, *, json: Annotated[bool, Parameter(negative=())] = False) -> int:
    """Say whether the service files of a checkout are right, and what they mean.

    Args:
        path: A service file, or a folder whose service files are all read.
        json: Print files and faults as JSON.

    Returns:
        0 when all are right, 2 when one is not.
    """
    from waybill.deploy.servicefile_tree import distinct, find

    if not path.exists():
        raise NotFoundError(f"{path} does not exist.")
    top, listed = (path.parent, [path.name]) if path.is_file() else (path, _list(path))
    names = listed if path.is_file() else find(listed)
    if not names:
        raise NotFoundError(f"there is no waybill.yml in {path.resolve()}.", "waybill init writes one.")
    files, faults = _parse_all(top, names)
    clash = ""
    try:
        distinct(files)
    except InvalidInputError as error:
        clash = str(error)
    if json:
        print(
            jsonlib.dumps(
                {
                    "files": [_summary(file) | {"notes": _notes(file, top)} for file in files],
                    "faults": [{name: getattr(fault, name) for name in fault.__struct_fields__} for fault in faults],
                    "clash": clash or None,
                }
            )
        )
    else:
        print("\n".join([*map(str, faults), *([clash] if clash else []), *(_told(file, top) for file in files)]))
    return 2 if faults or clash else 0


def schema(*, json: Annotated[bool, Parameter(negative=())] = False) -> None:  # noqa: ARG001 - it is JSON anyway
    """Print the JSON Schema of waybill.yml, for editors.

    Args:
        json: Changes nothing; the schema is JSON.
    """
    from waybill.deploy.servicefile_schema import text

    print(text(), end="")


def _target(folder: Path, *, force: bool) -> Path:
    from waybill.deploy.servicefile_tree import NAMES

    there = [folder / name for name in NAMES if (folder / name).exists()]
    if there and not force:
        raise ConflictError(f"{there[0].name} is there already.", "waybill check reads it; --force replaces it.")
    return there[0] if there else folder / NAMES[0]


def _checked(made: Any, tree: Tree, name: str) -> Any:
    from waybill.deploy.servicefile_init import start
    from waybill.deploy.servicefile_parse import parse

    try:
        parse(made.text, name)
    except InvalidInputError:  # a start command that no service file can hold
        made = start("minimal", tree)
        parse(made.text, name)
    return made


def _tree(folder: Path) -> Tree:
    from waybill.deploy.servicefile_guess import READ, Tree

    if _git(folder, "rev-parse", "--is-inside-work-tree") != "true":
        raise NotFoundError(f"{folder} is in no git repository.", "git init makes one; waybill deploys what is pushed.")
    files = frozenset(_list(folder))
    texts = {}
    for name in files.intersection(READ):
        with (folder / name).open(errors="replace") as file:
            texts[name] = file.read(1 << 18)
    remote = _git(folder, "symbolic-ref", "--short", "refs/remotes/origin/HEAD").partition("/")[2]
    branch = remote or _git(folder, "branch", "--show-current") or _git(folder, "config", "init.defaultBranch")
    return Tree(name=folder.name, branch=branch or "main", files=files, texts=texts)


def _list(folder: Path) -> list[str]:
    """Paths below a folder, those that git ignores left out where it is a git checkout."""
    listed = _git(folder, "ls-files", "-z", "--cached", "--others", "--exclude-standard", strip=False)
    if listed or _git(folder, "rev-parse", "--is-inside-work-tree") == "true":
        return [path for path in dict.fromkeys(listed.split("\0")) if path and (folder / path).is_file()]
    paths: Iterable[Path] = (path for path in folder.rglob("waybill.y*ml") if path.is_file())
    return [path.relative_to(folder).as_posix() for path, _ in zip(paths, range(MAX_LISTED), strict=False)]


def _git(folder: Path, *arguments: str, strip: bool = True) -> str:
    """What git answers, empty when it refuses."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, timeout=30, check=False)
    except FileNotFoundError:
        raise NotFoundError("git is not installed.", "On Debian: apt install git.") from None
    answer = done.stdout.decode(errors="surrogateescape") if done.returncode == 0 else ""
    return answer.strip() if strip else answer


def _parse_all(top: Path, names: list[str]) -> tuple[list[ServiceFile], list[Fault]]:
    from waybill.deploy.servicefile_parse import parse
    from waybill.deploy.servicefile_yaml import MAX_BYTES, InvalidServiceFileError

    files: list[ServiceFile] = []
    faults: list[Fault] = []
    for name in names:
        with (top / name).open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        try:
            files.append(parse(text, name))
        except InvalidServiceFileError as error:
            faults.extend(error.faults)
    return files, faults


def _summary(file: ServiceFile) -> dict[str, Any]:
    environments = {
        name: {"branches": environment.branches, "hosts": environment.hosts, "driver": environment.run.driver}
        for name, environment in file.environments.items()
    }
    return {"path": file.path, "service": file.service, "environments": environments}


def _notes(file: ServiceFile, top: Path) -> list[str]:
    notes = []
    for name, environment in file.environments.items():
        if environment.run.port is not None and environment.health is None:
            notes.append(f"{name} has no health check: a broken version would reach users.")
        if environment.variables and not (top / environment.variables).is_file():
            notes.append(f"{name} names {environment.variables}, which is not there: waybill lock {name} writes it.")
    return notes


def _told(file: ServiceFile, top: Path) -> str:
    lines = [f"{file.path} is right: the service {file.service}"]
    for name, environment in file.environments.items():
        labels = ", ".join(f"{key}: {value}" for key, value in environment.hosts.items())
        branches = ", ".join(environment.branches)
        lines.append(f"  {name}: branches {branches} → hosts {labels} ({environment.run.driver})")
    return "\n".join([*lines, *(f"  note: {note}" for note in _notes(file, top))])
