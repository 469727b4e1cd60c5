"""What ``waybill.yml`` says, as frozen values.

The file in the repository only narrows: which branches and hosts an environment may really use is granted on the
server and on each host. ``servicefile_parse`` reads the text; nothing else makes these values.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from waybill.drivers.model import Health


class Build(msgspec.Struct, frozen=True, kw_only=True):
    """How a commit becomes a build: once, unprivileged, on a host labelled ``build``.

    Attributes:
        command: Argument vector, run in the folder of the service file.
        output: Folder or file, relative to the service file's folder, that is packed.
        timeout: Seconds it may take.
        limit: Bytes the packed result may have.
    """

    command: tuple[str, ...]
    output: str
    timeout: float = 600.0
    limit: int = 2 * 1024**3


class Function(msgspec.Struct, frozen=True, kw_only=True):
    """A named command that runs on hosts, shipped with the commit.

    Attributes:
        command: Argument vector, run in the release folder with the service's variables.
        timeout: Seconds it may take before its whole process group is ended.
        once: One host of a rollout runs it, before any host switches.
    """

    command: tuple[str, ...]
    timeout: float = 60.0
    once: bool = False


class RunSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How the service runs on a host.

    Attributes:
        driver: Name of a file in ``drivers/``.
        command: Argument vector; a relative first part is resolved in the release folder.
        port: The port that users connect to; None when the service listens on none.
        drain: Seconds that established connections keep after a switch.
        options: The other keys of ``run``, checked and converted to the driver's ``Options``.
    """

    driver: str
    command: tuple[str, ...]
    port: int | None = None
    drain: float = 30.0
    options: Any = None


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """One environment of a service.

    Attributes:
        name: Such as ``production``.
        branches: Patterns (fnmatch, ``*`` also spans ``/``) of the branches that deploy here.
        hosts: Labels that a host must carry, all of them.
        run: How it runs there.
        variables: Path of the locked file in the commit, or None.
        health: None means no check, shown as a warning everywhere.
        before: Names of functions run on each host before its switch.
        after: Names of functions run on each host after its switch.
        failed: Names of functions run on a host whose new version failed.
        order: ``together`` switches all hosts at once, ``one-by-one`` the next when the one before is live.
    """

    name: str
    branches: tuple[str, ...]
    hosts: dict[str, str]
    run: RunSpec
    variables: str | None = None
    health: Health | None = None
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    order: Literal["together", "one-by-one"] = "together"


class ServiceFile(msgspec.Struct, frozen=True, kw_only=True):
    """One ``waybill.yml``.

    Attributes:
        path: Where it stands in the commit, for example ``waybill.yml`` or ``api/waybill.yml``.
        service: Name: lower-case letters, digits and ``-``, at most 40.
        environments: By name, in the order of the file.
        build: None means that the commit's tree is the build.
        functions: By name.
        paths: Patterns of paths whose change concerns this service; empty means every path.
    """

    path: str
    service: str
    environments: dict[str, Environment]
    build: Build | None = None
    functions: dict[str, Function] = {}
    paths: tuple[str, ...] = ()
