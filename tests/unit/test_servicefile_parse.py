"""What a service file says is read as its author meant it; the many refusals are in tests/cases."""

from servicefile_small import DRIVERS, EXAMPLE, Options
from waybill.deploy.servicefile import Build, Function
from waybill.deploy.servicefile_parse import parse
from waybill.drivers.model import Health


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
