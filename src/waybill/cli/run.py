"""Runs one command: imports its module, hands the arguments to cyclopts, and tells errors to the person.

A command module defines a cyclopts ``App`` (a group) or a function. Commands raise ``WaybillError``; this is the one
place that prints it and turns it into an exit status.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Sequence

import cyclopts

from waybill.core.errors import InvalidInputError, NotFoundError, WaybillError


def run(arguments: Sequence[str], commands: dict[str, tuple[str, str]]) -> int:
    """Run ``waybill ARGUMENTS``; returns the exit status."""
    as_json = "--json" in arguments
    try:
        return _dispatch(arguments, commands)
    except cyclopts.CycloptsError as error:
        return tell(_usage(arguments, error), as_json=as_json)
    except WaybillError as error:
        return tell(error, as_json=as_json)
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
    result = app(rest, exit_on_error=False, print_error=False, result_action="return_value")
    return result if isinstance(result, int) and not isinstance(result, bool) else 0


def tell(error: WaybillError, *, as_json: bool) -> int:
    """Print an error for the person; returns its exit status."""
    if as_json:
        print(json.dumps({"error": error.reason, "hint": error.hint, "status": error.status}))
    print(f"waybill: {error.reason}", file=sys.stderr)
    if error.hint:
        print(f"  {error.hint}", file=sys.stderr)
    return error.exit_code


def _usage(arguments: Sequence[str], error: cyclopts.CycloptsError) -> InvalidInputError:
    """A wrong use of a command, as a sentence that begins like all others."""
    text = " ".join(str(error).split()).rstrip(".")
    text = re.sub(r'^(?:Command ".*?" )?[Pp]arameter (\S+) requires an argument', r"\1 is missing", text)
    words = [arguments[0], *(word for word in arguments[1:2] if not word.startswith("-") and error.command_chain)]
    return InvalidInputError(
        f"{text[:1].lower() if text[1:2].islower() else text[:1]}{text[1:]}.",
        f"waybill {' '.join(words)} --help says more.",
    )


def _app(name: str, function: object) -> cyclopts.App:
    app = cyclopts.App(name=f"waybill {name}", help_format="plaintext", version_flags=[])
    app.default(function)  # type: ignore[call-overload]
    return app
