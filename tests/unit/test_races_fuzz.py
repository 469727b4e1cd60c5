"""Whatever stands in a log, a scan ends, in order, and invents nothing."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.races import race
from waybill.races import frames, rules, text, unwrap
from waybill.races.model import Frame
from waybill.races.ports import Issue
from waybill.races.scan import Scanner, Tape
from waybill.races.text import Race, Seen

RECORDINGS = [file.read_bytes() for file in sorted((Path(__file__).parents[1] / "cases/races").glob("*.log"))]
LINES = [line for data in RECORDINGS for line in data.splitlines(keepends=True)]


class Slow:
    """A stream that gives a few bytes at a time."""

    def __init__(self, data, step):
        self.stream, self.step = io.BytesIO(data), step

    def read(self, size):
        return self.stream.read(min(size, self.step))


def scan(stream, **options):
    scanner = Scanner()
    return [*scanner.read(Tape(stream), "x", "x", **options), *scanner.rest(final=True)]


@given(st.binary(max_size=400), st.lists(st.sampled_from(LINES), max_size=60), st.binary(max_size=200), st.booleans())
@settings(max_examples=150, deadline=None)
def test_no_bytes_break_a_scan(before, lines, after, export):
    for one in scan(io.BytesIO(before + b"".join(lines) + after), export=export):
        assert len(one.report.key) == 2
        assert list(one.report.key) == sorted(one.report.key)
        assert json.dumps(one.report.title)
        assert not (one.report.complete and "?" in one.report.key)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_damaged_recordings_never_break_a_scan(data):
    raw = bytearray(data.draw(st.sampled_from(RECORDINGS)))
    for _ in range(data.draw(st.integers(0, 12))):
        place = data.draw(st.integers(0, len(raw) - 1))
        match data.draw(st.integers(0, 2)):
            case 0:
                raw[place] = data.draw(st.integers(0, 255))
            case 1:
                del raw[place : place + data.draw(st.integers(1, 60))]
            case _:
                raw[place:place] = data.draw(st.binary(max_size=40))
        raw = raw or bytearray(b"x")
    scan(io.BytesIO(bytes(raw)))


@given(st.integers(1, 300), st.lists(st.integers(0, 3), min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
def test_how_a_stream_is_cut_into_blocks_does_not_matter(step, numbers):
    data = b"".join(b"a line\n" * n + race(n).encode() for n in numbers)
    found = scan(Slow(data, step))
    assert [one.report for one in found] == [one.report for one in scan(io.BytesIO(data))]
    lines = data.splitlines()
    assert all(lines[one.report.line - 1] == b"WARNING: DATA RACE" for one in found)
    assert [one.origin.offset for one in found] == [data.index(b"WARNING", place) for place in starts(data)]


def starts(data):
    found, place = [], data.find(b"WARNING")
    while place >= 0:
        found.append(place)
        place = data.find(b"WARNING", place + 1)
    return found


@given(st.binary(max_size=300))
def test_any_line_is_unwrapped(raw):
    for line in unwrap.lines(raw.replace(b"\n", b"")):
        assert "\x1b" not in line.text
        assert "\n" not in line.text


@given(st.text(max_size=80))
def test_any_symbol_is_normalised_once(symbol):
    name = frames.normalised(symbol)
    assert "[" not in name or "[" in symbol
    frames.is_standard(symbol)
    frames.c_name(symbol)
    frames.application((Frame(symbol),))


@given(
    st.text(max_size=60),
    st.text(max_size=60),
    st.text(max_size=30),
    st.dictionaries(st.text(max_size=20), st.integers(0, 9)),
)
def test_markers_come_back_whatever_is_in_them(first, second, build, counts):
    race_of = Race(id="v1:0", key=(first, second))
    seen = Seen(build=build, day="2026-11-20", counts=counts)
    body = (
        f"{text.hidden('race', race_of)}\n{text.hidden('race-seen', seen)}\n\n```text\n<!-- waybill:race {{}} -->\n```"
    )
    issue = Issue(number="1", title="t", body=body, open=True)
    assert text.races(issue) == [race_of]
    assert text.seen(body) == [seen]
    assert all(line.count("-->") == 1 and "@" not in line and "`" not in line for line in body.split("\n")[:2])


@given(st.text(max_size=300))
def test_code_stays_code(said):
    span = text.code(said)
    assert span == "(none)" or (span.count("`") == 2 and "\n" not in span)
    block = text.fenced(said)
    fence = block.partition("text\n")[0]
    assert block.endswith(f"\n{fence}")
    assert all(fence not in line for line in block.split("\n")[1:-1])


NAMES = [
    ("main.main.func1", "main.main.func1"),
    ("a.example/b.(*T[go.shape.struct { ID int }]).M", "a.example/b.(*T).M"),
    ("a.example/b.Map[go.shape.int,go.shape.map[string]int]", "a.example/b.Map"),
    ("x.example/y/vendor/z.example/w.F", "z.example/w.F"),
    ("vendor/golang.example/x/net.F", "golang.example/x/net.F"),
    ("x.example/Godeps/_workspace/src/z.example/w.F", "z.example/w.F"),
    ("gopkg.example/yaml%2ev2.(*D).M", "gopkg.example/yaml.v2.(*D).M"),
    ("main.func·007", "main.func7"),
    ("_cgoexp_0123456789ab_cb", "_cgoexp_cb"),
]


@pytest.mark.parametrize(("symbol", "name"), NAMES)
def test_names(symbol, name):
    assert frames.normalised(symbol) == name


C_NAMES = [
    ("main", "main"),
    ("ns::T<int, std::vector<int> >::f(char const*) const", "ns::T::f"),
    ("ns::operator<<(std::ostream&, ns::T const&)", "ns::operator<<"),
    ("ns::T::operator()(int) const", "ns::T::operator()"),
    ("ns::T<int>::operator->()", "ns::T::operator->"),
    ("f.constprop.0", "f"),
]


@pytest.mark.parametrize(("symbol", "name"), C_NAMES)
def test_names_of_c(symbol, name):
    assert frames.c_name(symbol) == name


@pytest.mark.parametrize(
    "name",
    [
        "fmt.Println",
        "net/http.(*conn).serve",
        "runtime.goexit",
        "internal/race.Read",
        "??",
        "container/heap.Pop",
        "sync/atomic.AddInt64",
    ],
)
def test_the_standard_library_is_known(name):
    assert frames.is_standard(name)


@pytest.mark.parametrize(
    "name",
    [
        "main.main",
        "command-line-arguments.F",
        "popular/cli.F",
        "log.example/x.F",
        "test.F",
        "network/x.F",
        "k8s.io/client-go/testing.(*Fake).F",
    ],
)
def test_what_only_looks_like_it_is_an_application(name):
    assert not frames.is_standard(name)


def test_an_older_open_issue_stays_and_others_are_closed():
    body = text.hidden("race", Race(id="v1:a", key=("a", "b")))
    made = [Issue(number=n, title="t", body=body, open=n != "2") for n in ("10", "9", "2")]
    found = rules.index(made)
    assert rules.chosen(found["v1:a"]).number == "9"
    assert rules.surplus(found) == {"10": "9"}
