"""``waybill enroll``: a token with which a machine becomes a host."""

from __future__ import annotations

from typing import Annotated

import cyclopts

from waybill.cli.output import Json, emit, labels
from waybill.core.errors import InvalidInputError

_UNITS = {"m": 60, "h": 3600, "d": 86400}


def enroll(
    *,
    label: Annotated[list[str] | None, cyclopts.Parameter(name=["--label", "-l"])] = None,
    uses: int = 1,
    within: str = "1h",
    json: Json = False,
) -> None:
    """Make an enrolment token, with which a machine becomes a host.

    Args:
        label: Label of the hosts that use it, as name=value; give it again for more.
        uses: How many hosts may use it.
        within: How long it is valid: 30m, 12h or 7d.
        json: Print JSON.
    """
    from waybill.cli.client import Client
    from waybill.wire.api import EnrolmentMade, EnrolmentWanted

    if within[-1:] not in _UNITS or not within[:-1].isdecimal():
        raise InvalidInputError(f"{within!r} is no length of time.", "Write 30m, 12h or 7d.")
    seconds = int(within[:-1]) * _UNITS[within[-1]]
    wanted = EnrolmentWanted(labels=labels(label or []), uses=uses, seconds=seconds)
    made = Client().call("POST", "/api/enrolments", EnrolmentMade, wanted)
    if json:
        emit(made)
        return
    times = "once" if uses == 1 else f"{uses} times"
    print(f"Valid {times}, until {made.expires}. On each new host, as root:\n")
    print(f"  waybill agent enroll {made.token} --allow 'SERVICE/ENVIRONMENT'\n")
    print("--allow is the host's own list: it accepts nothing else, whatever this server says.")
