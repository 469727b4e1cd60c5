"""What a service file says is read as its author meant it; the many refusals are in tests/cases."""

from typing import Annotated, ClassVar

import msgspec

from waybill.deploy.servicefile import Build, Function
from waybill.deploy.servicefile_parse import parse
from waybill.drivers.model import Health

EXAMPLE = """\
service: hello
build: {command: [make, dist], output: dist/}   # once per commit, unprivileged, on a host labelled build
environments:
  production:
    branches: [main]
    hosts: {role: web}
    variables: .waybill/production.enc.yml       # locked with `waybill lock production`
    run: {driver: small, command: [./bin/hello], port: 8080}
    health: {path: /health, within: 30s}
    before: [migrate]
functions:
  migrate: {command: [./bin/hello, migrate], once: true, timeout: 2m}
"""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    memory: Annotated[int | None, msgspec.Meta(description="Most memory it may use", extra={"unit": "bytes"})] = None
    restarts: int = 3


class Small:
    name = "small"
    Options: ClassVar[type[msgspec.Struct]] = Options


DRIVERS = {"small": Small}


def test_the_example_reads_as_it_is_meant():
    file = parse(EXAMPLE, "waybill.yml", DRIVERS)
    production = file.environments["production"]
    assert (file.path, file.service, file.paths) == ("waybill.yml", "hello", ())
    assert file.build == Build(command=("make", "dist"), output="dist", timeout=600.0, limit=2 * 1024**3)
    assert file.functions == {"migrate": Function(command=("./bin/hello", "migrate"), once=True, timeout=120.0)}
    assert (production.name, production.branches, production.hosts) == ("production", ("main",), {"role": "web"})
    assert production.variables == ".waybill/production.enc.yml"
    assert production.health == Health(path="/health", within=30.0)
    assert (production.before, production.after, production.failed) == (("migrate",), (), ())
    assert (production.run.driver, production.run.command, production.run.port) == ("small", ("./bin/hello",), 8080)
    assert production.run.options == Options()
