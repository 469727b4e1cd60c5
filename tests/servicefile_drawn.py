"""Service files drawn by hypothesis, and as their author would have written them."""

import msgspec
from hypothesis import settings
from hypothesis import strategies as st

from servicefile_small import Options
from waybill.deploy.servicefile import Build, Environment, Function, RunSpec, ServiceFile
from waybill.deploy.servicefile_kinds import duration, size
from waybill.drivers.model import Health

calm = settings(deadline=None)
"""A busy machine is no fault."""

NAMES = st.from_regex(r"[a-z]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
ARGUMENTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=10)
COMMANDS = st.tuples(st.from_regex(r"(\./)?[a-z]{1,8}", fullmatch=True), ARGUMENTS, ARGUMENTS)
FILES = st.from_regex(r"[a-z]{1,5}(/[a-z0-9]{1,5}){0,2}", fullmatch=True)
SECONDS = st.integers(1000, 60_000).map(lambda thousandths: thousandths / 1000)


@st.composite
def service_files(draw):
    functions = draw(st.dictionaries(NAMES, st.builds(Function, command=COMMANDS, timeout=SECONDS), max_size=3))
    hooks = st.lists(st.sampled_from(sorted(functions)), unique=True).map(tuple) if functions else st.just(())
    environments = {}
    for number, name in enumerate(draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))):
        path = draw(st.none() | st.just("/health"))
        environments[name] = Environment(
            name=name,
            branches=tuple(draw(st.lists(FILES, min_size=1, max_size=3, unique=True))),
            hosts=draw(st.dictionaries(NAMES, NAMES, min_size=1, max_size=2)),
            run=RunSpec(
                driver="small",
                command=draw(COMMANDS),
                port=8000 + number,
                drain=draw(SECONDS),
                options=draw(st.builds(Options, memory=st.integers(1, 2**40), restarts=st.integers(0, 10))),
            ),
            variables=draw(st.none() | st.just(f"locked/{name}.yml")),
            health=draw(st.none() | st.builds(Health, path=st.just(path), within=st.just(60.0), timeout=SECONDS)),
            order=draw(st.sampled_from(["together", "one-by-one"])),
            before=draw(hooks),
            after=draw(hooks),
            failed=draw(hooks),
        )
    return ServiceFile(
        path="waybill.yml",
        service=draw(NAMES),
        environments=environments,
        build=draw(
            st.none()
            | st.builds(Build, command=COMMANDS, output=FILES, timeout=SECONDS, limit=st.integers(1024, 64 * 2**30))
        ),
        functions=functions,
        paths=draw(st.lists(FILES, max_size=3, unique=True).map(tuple)),
    )


def document(file):
    """What its author would have written, as plain values."""
    seconds, octets = duration(0, 1e9).format, size(0, 2**60).format
    plain = msgspec.to_builtins(file)
    del plain["path"]
    for holder in [plain["build"] or {}, *plain["functions"].values()]:
        holder.update({key: seconds(holder[key]) for key in ("timeout",) if key in holder})
        holder.update({key: octets(holder[key]) for key in ("limit",) if key in holder})
    for environment in plain["environments"].values():
        del environment["name"]
        run = environment["run"]
        run |= run.pop("options") | {"drain": seconds(run["drain"])}
        run["memory"] = octets(run["memory"])
        if health := environment["health"]:
            health.update(within=seconds(health["within"]), timeout=seconds(health["timeout"]))
            if health["path"] is None:
                health["tcp"] = True

    def filled(value):
        if isinstance(value, dict):
            return {key: filled(item) for key, item in value.items() if item not in (None, [], {}, ())}
        return value

    return filled(plain)
