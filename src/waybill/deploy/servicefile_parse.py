"""Reads ``waybill.yml``: text in, a ``ServiceFile`` out, or all that is wrong with it, each with its place."""

from __future__ import annotations

import glob
import posixpath

import msgspec

from waybill.deploy.servicefile import ServiceFile
from waybill.deploy.servicefile_checks import check
from waybill.deploy.servicefile_keys import service
from waybill.deploy.servicefile_run import Drivers, known_drivers
from waybill.deploy.servicefile_yaml import Faults, load


def parse(text: bytes | str, path: str, drivers: Drivers | None = None) -> ServiceFile:
    """The service file in a text.

    Args:
        text: UTF-8, at most 256 KiB.
        path: Where it stands in the commit; errors name it, and paths in the file are relative to its folder.
        drivers: By name; those of this installation when None.

    Raises:
        InvalidServiceFileError: With every fault of the file; an ``InvalidInputError``.
    """
    faults = Faults(path)
    root = load(text, faults)
    faults.raise_if_any()
    if root is None or root.type == "nothing":
        faults.at(1, 1, "the file is empty; waybill init writes a working one.")
        faults.raise_if_any()
    assert root is not None  # noqa: S101 - for mypy: raise_if_any has raised
    values = service(known_drivers() if drivers is None else drivers).values(root, faults)
    environments = {
        name: msgspec.structs.replace(environment, name=name)
        for name, environment in values.get("environments", {}).items()
    }
    # A fault in one environment must not hide one in another: whatever could be read is checked.
    check(environments, values.get("functions", {}), root, faults)
    faults.raise_if_any()
    folder = posixpath.dirname(path)
    for name, environment in environments.items():
        if environment.variables:
            inside = posixpath.join(folder, environment.variables)
            environments[name] = msgspec.structs.replace(environment, variables=inside)
    paths = values.pop("paths", (f"{glob.escape(folder)}/",) if folder else ())
    return ServiceFile(**values | {"path": path, "environments": environments, "paths": paths})
