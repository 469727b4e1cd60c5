"""A keeper that kills itself with SIGKILL at some step of one kind of request, counted in calls that it makes.

``python -S -s -P dying_keeper.py FOLDER OPERATION COUNT``, with the source folder in PYTHONPATH. Nothing in the keeper
knows of this: the interpreter's profiling hook counts.
"""

import os
import signal
import sys
from types import FrameType
from typing import Any

from waybill.agent.keeper import serve
from waybill.agent.keeper_versions import Keeper

folder, operation, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
me, seen = os.getpid(), -1
FIRST = getattr(Keeper, operation).__code__
LAST = (Keeper.finish if operation == "stop" else getattr(Keeper, operation)).__code__


def hook(frame: FrameType, event: str, argument: Any) -> None:
    global seen  # noqa: PLW0603
    if event == "return" and frame.f_code is LAST and seen >= 0:
        sys.setprofile(None)  # the request is fulfilled: this keeper lives
    name = frame.f_code.co_filename
    if event not in {"call", "c_call"} or not ("/agent/keeper" in name or "/agent/steering" in name):
        return
    if seen < 0 and event == "call" and frame.f_code is FIRST:
        seen = 0
    if seen >= 0 and os.getpid() == me:
        seen += 1
        if seen >= count:
            os.kill(me, signal.SIGKILL)


os.chdir(folder)
sys.setprofile(hook)
serve(folder, -1, {})
