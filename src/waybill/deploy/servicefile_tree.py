"""Several service files in one repository: which paths are ones, and which services a change concerns. Pure."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from waybill.core.errors import InvalidInputError
from waybill.deploy.servicefile import ServiceFile

NAMES = ("waybill.yml", "waybill.yaml")
FOREIGN = frozenset({"node_modules", "vendor", "third_party"})
"""Folders of other people's code, whose service files must not speak for this repository."""
MAX_FILES = 200


def find(paths: Iterable[str]) -> list[str]:
    """The service files among the paths of a tree: ``waybill.yml`` or ``waybill.yaml``, in any folder.

    Folders whose name begins with a dot, and ``node_modules``, ``vendor`` and ``third_party``, are passed over.

    Returns:
        Sorted, the root's own file first.

    Raises:
        InvalidInputError: Both names stand in one folder, or there are more than 200 files.
    """
    found: dict[str, str] = {}
    for path in paths:
        folder, name = posixpath.split(path)
        if name not in NAMES or any(part in FOREIGN or part.startswith(".") for part in folder.split("/") if part):
            continue
        if found.setdefault(folder, path) != path:
            place = folder or "the root"
            raise InvalidInputError(
                f"{place} has both waybill.yml and waybill.yaml.", "Keep one of the two; nobody can tell which counts."
            )
    if len(found) > MAX_FILES:
        raise InvalidInputError(f"the repository has {len(found)} service files; {MAX_FILES} are read at most.")
    return [found[folder] for folder in sorted(found)]


def distinct(files: Sequence[ServiceFile]) -> None:
    """Refuse two files that claim one service.

    Raises:
        InvalidInputError: Naming both files.
    """
    seen: dict[str, str] = {}
    for file in files:
        if (first := seen.setdefault(file.service, file.path)) != file.path:
            raise InvalidInputError(
                f"{first} and {file.path} both describe the service {file.service!r}.", "Rename one of them."
            )


def concerned(files: Sequence[ServiceFile], changed: Iterable[str]) -> list[ServiceFile]:
    """The services that a change of these paths concerns, in the order given.

    Its own file and its locked files always concern a service. Otherwise its ``paths`` decide: a pattern names a
    path, a folder with all below it, or uses ``*``, which stands for anything, ``/`` too. Without ``paths`` that is
    everything for a file at the root, and the file's own folder for any other (``parse`` fills that in).
    """
    changed = list(changed)
    return [file for file in files if any(_concerns(file, path) for path in changed)]


def _concerns(file: ServiceFile, path: str) -> bool:
    locked = {environment.variables for environment in file.environments.values()}
    return path == file.path or path in locked or not file.paths or any(matches(path, own) for own in file.paths)


def matches(path: str, pattern: str) -> bool:
    """Whether a pattern of ``paths`` covers a path; ``**/`` also stands for no folder at all."""
    pattern = pattern.replace("**/", "*")
    return fnmatchcase(path, f"{pattern.rstrip('/')}/*") or (not pattern.endswith("/") and fnmatchcase(path, pattern))
