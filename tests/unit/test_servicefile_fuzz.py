"""Whatever stands in a service file, reading it ends in a value or in a refusal with a place, and quickly."""

import io
import json
import re
import time

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from servicefile_small import DRIVERS, EXAMPLE, Options
from waybill.core.errors import InvalidInputError
from waybill.deploy.servicefile import Build, Environment, Function, RunSpec, ServiceFile
from waybill.deploy.servicefile_kinds import duration, size
from waybill.deploy.servicefile_parse import parse
from waybill.drivers.model import Health


def reads_or_refuses(text):
    refusal = None
    try:
        parse(text, "waybill.yml", DRIVERS)
    except InvalidInputError as error:
        refusal = error.reason
    lines = [] if refusal is None else refusal.split("\n")
    assert all(re.fullmatch(r"waybill\.yml:\d+:\d+: .+|and \d+ more\.", line) for line in lines), refusal
    "".join(lines).encode()  # it can be printed and sent


@given(st.binary(max_size=400))
@example(b"\xef\xbb\xbf# a byte order mark")
@example(b'a: "\\UFFFFFFFF"')
@example(b'a: "\\ud800"')
def test_any_bytes(data):
    reads_or_refuses(data)


@given(st.text(max_size=300))
def test_any_text(text):
    reads_or_refuses(text)


@given(st.text("abm: \n\t-[]{},#&*!|>'\"%@`?<\\0123~.\r\x85\u2028x", max_size=120))
def test_any_text_of_what_yaml_gives_a_meaning(text):
    reads_or_refuses(text)


VOCABULARY = (
    "service build command output timeout limit environments production staging branches hosts role run driver small",
    "port drain variables health path tcp within before after failed functions migrate once paths memory main ./x",
    "/health 30s 2m 512MiB dist/ .. true 8080 0 -1 1.5 null [] {} ~ << .waybill/a.yml",
)
WORDS = st.sampled_from(" ".join(VOCABULARY).split()) | st.text(max_size=8)
DOCUMENTS = st.recursive(
    WORDS | st.integers() | st.booleans() | st.none() | st.floats(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=6),
    max_leaves=40,
)


@given(st.dictionaries(WORDS, DOCUMENTS, max_size=6))
def test_any_document_of_the_words_that_a_service_file_has(document):
    reads_or_refuses(json.dumps(document, ensure_ascii=False))


@given(st.data())
def test_the_example_with_any_piece_replaced(data):
    start = data.draw(st.integers(0, len(EXAMPLE)))
    end = data.draw(st.integers(start, min(len(EXAMPLE), start + 30)))
    reads_or_refuses(EXAMPLE[:start] + data.draw(st.text(max_size=20)) + EXAMPLE[end:])


def test_no_file_of_the_size_that_is_allowed_takes_long():
    room = 256 * 1024 - 10
    for text in (
        "[" * room,
        "a: " + "{" * room,
        "a: " + "- " * (room // 2),
        "a:\n" * 5 + "? " * (room // 3),
        "a: " + "x " * (room // 2 - 5),
        "".join(f"k{n}: v\n" for n in range(20000))[:room],
        "x" * room,
        "a: '" + "\n" * room,
        "a: |\n" + " y\n" * (room // 4),
        "&a " * (room // 3),
        "paths: [" + "a*" * (room // 2 - 5) + "]",
        "service: " + "-" * room,
    ):
        begun = time.process_time()
        reads_or_refuses(text)
        assert time.process_time() - begun < 5, text[:20]  # 0.4 s is usual; a quadratic one takes minutes


# Accepted files survive being written and read again.

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


@given(service_files())
def test_what_was_read_can_be_written_and_read_again(file):
    plain = document(file)
    # As they are: YAML knows no pairs of surrogate escapes, the one thing of JSON that it does not read.
    assert parse(json.dumps(plain, ensure_ascii=False), "waybill.yml", DRIVERS) == file
    written = io.StringIO()
    YAML(typ="safe", pure=True).dump(plain, written)
    assert parse(written.getvalue(), "waybill.yml", DRIVERS) == file
