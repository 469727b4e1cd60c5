"""What a host says of itself; it informs, and never selects."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

from waybill import __version__
from waybill.agent.placing import drivers
from waybill.core.clock import stamp
from waybill.wire.agent import Facts


def facts(folder: Path) -> Facts:
    """Version, machine and free space where the agent keeps its releases."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return Facts(
        version=__version__,
        arch=os.uname().machine,
        system=_system(),
        at=stamp(),
        drivers=sorted(drivers()),
        disk_free=shutil.disk_usage(place).free,
    )


def _system() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        return platform.system()
