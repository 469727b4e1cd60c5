"""Runs one command: imports its module, hands the arguments to cyclopts, and tells errors to the person.

A command module defines a cyclopts ``App`` (a group) or a function. Commands raise ``WaybillError``; this is the one
place that prints it and turns it into an exit status.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence

import cyclopts

from waybill.core.errors import NotFoundError, WaybillError


def run(arguments: Sequence[str], commands: dict[str, tuple[str, str]]) -> int:
    """Run ``waybill ARGUMENTS``; returns the exit status."""
    as_json = "--json" in arguments
    try:
        return _dispatch(arguments, commands)
    except WaybillError as error:
        if as_json:
            print(json.dumps({"error": error.reason, "hint": error.hint, "status": error.status}))
        print(f"waybill: {error.reason}", file=sys.stderr)
        if error.hint:
            print(f"  {error.hint}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 141


def _dispatch(arguments: Sequence[str], commands: dict[str, tuple[str, str]]) -> int:
    name, *rest = arguments
    if name not in commands:
        import difflib

        near = difflib.get_close_matches(name, commands, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else "waybill --help lists them."
        raise NotFoundError(f"there is no command {name!r}.", hint)
    module, _, attribute = commands[name][0].partition(":")
    target = getattr(importlib.import_module(module), attribute)
    app = target if isinstance(target, cyclopts.App) else _app(name, target)
    result = app(rest, exit_on_error=True, print_error=True, result_action="return_value")
    return result if isinstance(result, int) and not isinstance(result, bool) else 0


def _app(name: str, function: object) -> cyclopts.App:
    app = cyclopts.App(name=f"waybill {name}", help_format="plaintext", version_flags=[])
    app.default(function)  # type: ignore[call-overload]
    return app
