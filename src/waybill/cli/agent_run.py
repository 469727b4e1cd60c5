"""``waybill agent run`` without the library that reads command lines; anything unusual is handed to it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from waybill.core.errors import WaybillError


def main(arguments: Sequence[str]) -> int:
    """Run the agent; returns the exit status."""
    state, as_json = "", False
    rest = list(arguments)
    while rest:
        match rest.pop(0):
            case "--json":
                as_json = True
            case "--state" if rest:
                state = rest.pop(0)
            case _:
                from waybill.cli.main import COMMANDS
                from waybill.cli.run import run

                return run(["agent", "run", *arguments], COMMANDS)

    from waybill.agent.main import run as run_agent
    from waybill.agent.state import Home, default_home

    try:
        run_agent(Home((Path(state) if state else default_home()).absolute()), as_json=as_json)
    except WaybillError as error:
        from waybill.cli.run import tell

        return tell(error, as_json=as_json)
    return 0
