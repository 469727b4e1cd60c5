"""The reference pages say what the code does."""

import re
from pathlib import Path

from waybill.cli.rollouts import EndedOtherwiseError
from waybill.core import errors

DOCS = Path(__file__).parents[2] / "docs" / "reference"


def kinds(base):
    return {base, *(kind for sub in base.__subclasses__() for kind in kinds(sub))}


def test_every_exit_status_is_documented():
    table = (DOCS / "exit-codes.md").read_text()
    documented = {int(found) for found in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)}
    assert {kind.exit_code for kind in kinds(errors.WaybillError)} | {0, 130, 141} <= documented
    assert EndedOtherwiseError.exit_code == 8
