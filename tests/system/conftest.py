"""Fixtures for tests on real hosts: skipped, saying what is missing, where there can be none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.need import missing
from system import image
from system.hosts import Fleet


@pytest.fixture(scope="session")
def disk_layers(tmp_path_factory: pytest.TempPathFactory):
    """The layers of a host's disk, with this checkout's waybill in /opt/waybill."""
    if lacks := image.missing():
        missing(f"{lacks}, for real hosts")
    return image.layers(tmp_path_factory.mktemp("waybill"))


@pytest.fixture(scope="module")
def fleet(disk_layers) -> Iterator[Fleet]:
    """An empty fleet for one test module; all of it is gone afterwards."""
    fleet = Fleet(disk_layers)
    try:
        yield fleet
    finally:
        fleet.close()
