"""Whatever stands in a service file, reading it ends in a value or in a refusal with a place, and quickly."""

import io
import json
import re
import time

from hypothesis import example, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from servicefile_drawn import calm, document, service_files
from servicefile_small import DRIVERS, EXAMPLE
from waybill.core.errors import InvalidInputError
from waybill.deploy.servicefile_parse import parse


def reads_or_refuses(text):
    refusal = None
    try:
        parse(text, "waybill.yml", DRIVERS)
    except InvalidInputError as error:
        refusal = error.reason
    lines = [] if refusal is None else refusal.split("\n")
    assert all(re.fullmatch(r"waybill\.yml:\d+:\d+: .+|and \d+ more\.", line) for line in lines), refusal
    "".join(lines).encode()  # it can be printed and sent


@calm
@given(st.binary(max_size=400))
@example(b"\xef\xbb\xbf# a byte order mark")
@example(b'a: "\\UFFFFFFFF"')
@example(b'a: "\\ud800"')
def test_any_bytes(data):
    reads_or_refuses(data)


@calm
@given(st.text(max_size=300))
def test_any_text(text):
    reads_or_refuses(text)


@calm
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


@calm
@given(st.dictionaries(WORDS, DOCUMENTS, max_size=6))
def test_any_document_of_the_words_that_a_service_file_has(document):
    reads_or_refuses(json.dumps(document, ensure_ascii=False))


@calm
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


@settings(calm, max_examples=50)
@given(service_files())
def test_what_was_read_can_be_written_and_read_again(file):
    plain = document(file)
    # As they are: YAML knows no pairs of surrogate escapes, the one thing of JSON that it does not read.
    assert parse(json.dumps(plain, ensure_ascii=False), "waybill.yml", DRIVERS) == file
    written = io.StringIO()
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False  # in a flow list it writes ?x without the quotes that its reader wants there
    writer.dump(plain, written)
    assert parse(written.getvalue(), "waybill.yml", DRIVERS) == file
