"""Plug-in tables: one new file in a folder is one new driver, forge, automation.

A seam is a package whose modules each define one attribute of an agreed name. ``Plugins`` imports them all and
maps the name each gives itself to what it provides; two files that claim one name stop start-up.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from waybill.core.errors import NotFoundError, WaybillError

T = TypeVar("T")


class Plugins(Mapping[str, T], Generic[T]):
    """What the modules of one package provide, by name.

    Args:
        package: Dotted name of the package that holds the plug-ins, for example ``waybill.drivers``.
        attribute: The module attribute that each plug-in defines; it has a ``name``. Modules without it are
            shared code of the package and are passed over.
    """

    def __init__(self, package: str, attribute: str) -> None:
        self._package = package
        self._found: dict[str, T] = {}
        root = importlib.import_module(package)
        for module in pkgutil.iter_modules(root.__path__):
            plugin = getattr(importlib.import_module(f"{package}.{module.name}"), attribute, None)
            if plugin is None:
                continue
            if plugin.name in self._found:
                raise WaybillError(f"two files of {package} call themselves {plugin.name!r}.", "Rename or remove one.")
            self._found[plugin.name] = plugin

    def __getitem__(self, name: str) -> T:
        try:
            return self._found[name]
        except KeyError:
            known = ", ".join(sorted(self._found)) or "none"
            raise NotFoundError(f"{self._package} has no {name!r}.", f"Known: {known}.") from None

    def __contains__(self, name: object) -> bool:
        return name in self._found

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)
