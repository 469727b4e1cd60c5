"""``waybill agent run`` that connects again sooner than in production, and dies where ``DIE`` says.

``DIE`` is ``before`` or ``after`` and a stage: SIGKILL comes right before or after the stage is stored, so it hits that
moment for certain; ``retiring`` is when the old version is to be ended.
"""

import os
import signal

import waybill.agent.link

waybill.agent.link.LONGEST_WAIT = 0.5

from waybill.agent.state import Attempt, Folder, Live  # noqa: E402 - the wait is read when the daemon is imported
from waybill.cli.main import main  # noqa: E402

when, _, stage = os.environ.get("DIE", "").partition(" ")
store = Folder.store


def dying(self, record):
    here = (isinstance(record, Attempt) and record.stage == stage and not record.verdict) or (
        isinstance(record, Live) and stage == "retiring" and record.retiring
    )
    if here and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    store(self, record)
    if here:
        os.kill(os.getpid(), signal.SIGKILL)


if when:
    Folder.store = dying
main()
