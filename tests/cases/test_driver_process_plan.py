"""The driver ``process``: each step as the commands that it is."""

import msgspec
import pytest

from waybill.drivers.model import Call, Health, Probe, Release
from waybill.drivers.process import DRIVER, Options

RELEASE = Release(
    key="hello/production", id="20260101T000000Z-abc", sequence=3, commit="a" * 40, root="/srv/r", state="/srv/s",
    command=("./bin/hello", "-v"), environment={"WAYBILL_SERVICE": "hello"}, options=Options(), port=8080,
    health=Health(path="/health"), secrets="/run/v", user="hello", drain=20.0,
)  # fmt: skip
START = {
    "op": "start", "id": "20260101T000000Z-abc", "command": ["./bin/hello", "-v"], "root": "/srv/r",
    "environment": {"WAYBILL_SERVICE": "hello"}, "secrets": "/run/v", "user": "hello", "port": 8080,
    "bind": "0.0.0.0", "drain": 20.0, "limits": {}, "restart": "always", "stop_signal": "SIGTERM",
    "log_size": 10485760,
}  # fmt: skip


def changed(**changes):
    return msgspec.structs.replace(RELEASE, **changes)


def call(request, timeout=30.0):
    return (Call(key="hello/production", folder="/srv/s/keeper", request=request, timeout=timeout),)


OWNER = "keeper:/srv/s/keeper:20260101T000000Z-abc"
STEADY = call({"op": "steady", "seconds": 1.0, "id": RELEASE.id})


@pytest.mark.parametrize(("step", "release", "expected"), [
    ("start", RELEASE, call(START)),
    ("start", changed(options=Options(memory=5, files=6, env={"A": "1"}, bind="::", restart="on-failure")), call(
        START | {"limits": {"memory": 5, "files": 6}, "environment": {"WAYBILL_SERVICE": "hello", "A": "1"},
                 "bind": "::", "restart": "on-failure"})),
    ("start", changed(address="10.0.0.5"), call(START | {"bind": "10.0.0.5"})),
    ("probe", RELEASE, (Probe(port=8080, health=Health(path="/health"), owner=OWNER),)),
    ("probe", changed(options=Options(bind="::")), (Probe(port=8080, health=Health(path="/health"), owner=OWNER),)),
    ("probe", changed(address="10.0.0.5"),
     (Probe(port=8080, health=Health(path="/health"), owner=OWNER, address="10.0.0.5"),)),
    ("probe", changed(health=None), STEADY),
    ("probe", changed(port=None), STEADY),
    ("switch", RELEASE, call({"op": "switch", "id": RELEASE.id})),
    ("stop", RELEASE, call({"op": "stop", "drain": 20.0, "id": RELEASE.id}, 70.0)),
])  # fmt: skip
def test_plan(step, release, expected):
    assert tuple(DRIVER.plan(step, release, None)) == expected
    assert tuple(DRIVER.plan(step, release, changed(id="another"))) == expected


def test_unknown_options_are_refused():
    with pytest.raises(msgspec.ValidationError, match="memry"):
        msgspec.convert({"memry": 1}, Options)
