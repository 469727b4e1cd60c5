"""Schema, guide and parser are one table: none may say what another does not."""

import io
import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from ruamel.yaml import YAML

from servicefile_drawn import calm, document, service_files
from servicefile_small import DRIVERS, EXAMPLE
from support.need import need
from waybill.core.errors import InvalidInputError
from waybill.deploy import servicefile_keys as keys
from waybill.deploy.servicefile import Build, Environment, Function, RunSpec, ServiceFile
from waybill.deploy.servicefile_parse import parse
from waybill.deploy.servicefile_run import known_drivers
from waybill.deploy.servicefile_schema import reference, schema
from waybill.drivers.model import Health

ROOT = Path(__file__).parent.parent.parent


def validator(drivers):
    return need("jsonschema", "the PyPI package jsonschema").Draft202012Validator(schema(drivers))


def loaded(text):
    return YAML(typ="safe", pure=True).load(io.StringIO(text))


def test_the_schema_is_a_schema_and_takes_the_example():
    jsonschema = need("jsonschema", "the PyPI package jsonschema")
    for drivers in (DRIVERS, known_drivers()):
        jsonschema.Draft202012Validator.check_schema(schema(drivers))
    validator(DRIVERS).validate(loaded(EXAMPLE))


def test_what_the_parser_takes_the_schema_takes():
    judge = validator(DRIVERS)

    @settings(calm, max_examples=40)
    @given(service_files())
    def takes(file):
        judge.validate(json.loads(json.dumps(document(file))))

    takes()


@pytest.mark.parametrize(
    "change",
    [
        ("service: hello", "servce: hello"),
        ("[make, dist]", "make dist"),
        ("2m", "120"),
        ("{role: web}", "{}"),
        ("port: 8080", "port: 0"),
        ("driver: small", "driver: big"),
        ("port: 8080", "port: 8080, memory: 5"),
        ("port: 8080", "port: 8080, thing: 5"),
        ("[main]", "[]"),
    ],
)
def test_what_the_schema_refuses_the_parser_refuses_too(change):
    text = EXAMPLE.replace(*change)
    assert text != EXAMPLE
    assert not validator(DRIVERS).is_valid(loaded(text))
    with pytest.raises(InvalidInputError, match=r"waybill\.yml:\d+:\d+: "):
        parse(text, "waybill.yml", DRIVERS)


def test_every_field_of_the_values_has_a_row():
    rows = {
        ServiceFile: keys.service({}),
        Environment: keys.environments({}),
        RunSpec: keys.RUN,
        Build: keys.BUILD,
        Function: keys.FUNCTIONS,
        Health: keys.HEALTH,
    }
    filled_in = {"path", "name", "options"}
    for struct, group in rows.items():
        own = {"path"} if struct is Health else set()
        assert len({key.name for key in group.keys}) == len(group.keys), f"{group.title} has a row twice"
        assert {key.name for key in group.keys} - {"tcp"} == set(struct.__struct_fields__) - filled_in | own


def test_the_guide_and_the_schema_in_the_tree_are_what_make_docs_writes():
    code = "import docs.__main__ as d, json; print(json.dumps(d.pages()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    for path, text in json.loads(done.stdout).items():
        assert (ROOT / "docs" / path).read_text() == text, f"docs/{path} is stale: make docs"


def test_every_driver_says_what_its_options_are():
    table = reference()
    for name, driver in known_drivers().items():
        section = table.partition(f"driver `{name}`")[2].partition("###")[0]
        for field in msgspec.structs.fields(driver.Options):
            row = next(line for line in section.splitlines() if line.startswith(f"| `{field.encode_name}` |"))
            assert row.rpartition(" | ")[2].removesuffix(" |"), f"{name}.{field.name} has no sentence"


def test_the_example_of_the_guide_is_right():
    guide = (ROOT / "docs/guides/service-file.md").read_text()
    text = guide.partition("```yaml\n")[2].partition("```")[0]
    assert parse(text, "waybill.yml").service == "hello"
