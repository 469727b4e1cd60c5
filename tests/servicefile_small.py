"""A service file and the small driver that it names, for tests of what reads service files."""

from typing import Annotated, ClassVar

import msgspec

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
    restarts: Annotated[int, msgspec.Meta(ge=0, le=10)] = 3


class Small:
    name = "small"
    Options: ClassVar[type[msgspec.Struct]] = Options


DRIVERS = {"small": Small}
