"""A test that needs what is not there says so; where everything must be there, it fails."""

import importlib
import os
import shutil
from typing import Any

import pytest


def missing(what: str) -> None:
    """Skip, or fail where REQUIRE_REAL says that nothing may be missing."""
    if os.environ.get("REQUIRE_REAL") == "1":
        pytest.fail(f"missing: {what}", pytrace=False)
    pytest.skip(f"missing: {what}")


def elsewhere(what: str) -> None:
    """Skip a test of something that nobody can install here, such as a team's own GitLab, whatever REQUIRE_REAL says."""
    pytest.skip(f"not here: {what}")


def need(module: str, what: str) -> Any:
    """Import a module that a test needs."""
    try:
        return importlib.import_module(module)
    except ImportError:
        return missing(what)


def need_program(name: str, package: str = "") -> str:
    """Path of a program that a test needs."""
    path = shutil.which(name)
    if path is None:
        missing(f"the program {name}" + (f" (Debian package {package})" if package else ""))
    return str(path)
