"""Nothing that a name, a cookie or an address can hold gets through the pages' own small parsers."""

import unicodedata
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waybill.core.clock import later, now, stamp
from waybill.infra.keys import Keys
from waybill.web.pages import words
from waybill.web.pages.render import ENV, inert
from waybill.web.pages.routes import _inside
from waybill.web.pages.session import Sessions


@given(st.text())
def test_what_is_printed_holds_no_invisible_character_and_no_markup(text):
    shown = ENV.from_string("{{ text }}").render(text=text)
    assert not any(
        unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") and char not in "\n\t" for char in shown
    )
    assert "<" not in shown and ">" not in shown
    shown.encode()
    assert inert("plain ✓ text\n\twith lines") == "plain ✓ text\n\twith lines"


@given(st.text() | st.from_regex(r"[/\\]{1,3}[a-z.@:/\\]{0,20}", fullmatch=True))
def test_log_in_leads_only_to_this_site(path):
    found = _inside(path)
    assert found.startswith("/") and not found.startswith(("//", "/\\")) and found.isascii() and found.isprintable()


class NoDatabase:
    async def read(self, _function):
        raise AssertionError("a cookie that was not signed here was believed")


@pytest.fixture(scope="module")
def sessions(tmp_path_factory):
    return Sessions(NoDatabase(), Keys(tmp_path_factory.mktemp("keys")), "https://ship.example")


HEX = st.text("0123456789abcdef", min_size=64, max_size=64)


@given(value=st.text() | HEX.map(lambda mac: f"1.{'0' * 36}.99999999999.{mac}"))
async def test_a_cookie_that_was_not_signed_here_is_nobody(sessions, value):
    assert await sessions.session(SimpleNamespace(cookies={sessions.cookie: value})) is None


def test_the_key_of_cookies_is_kept_and_private(tmp_path):
    keys = Keys(tmp_path)
    one, two = Sessions(NoDatabase(), keys, ""), Sessions(NoDatabase(), keys, "")
    assert one._sign("x") == two._sign("x")
    assert one._sign("x") != Sessions(NoDatabase(), Keys(tmp_path / "other"), "")._sign("x")
    assert keys.path("session-cookies").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "just now"),
        (-30, "just now"),
        (12, "12 s ago"),
        (185, "3 min ago"),
        (7200, "2 h ago"),
        (3 * 86400, "3 days ago"),
    ],
)
def test_ages_are_said_in_words(seconds, said):
    here = now()
    assert words.age(later(-seconds, here), stamp(here)) == said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], ""),
        (["a"], "a"),
        (["a", "b"], "a and b"),
        (["a", "b", "c"], "a, b and c"),
        (list("abcde"), "a, b, c and 2 more"),
    ],
)
def test_names_are_said_in_words(given, said):
    assert words.names(given) == said


@pytest.mark.parametrize(
    ("off", "said"),
    [
        (900, "Clock agrees"),
        (-5000, "Clock 5 s behind"),
        (3_600_000, "Clock 60 min ahead"),
        (-90_000_000, "Clock 25 h behind"),
    ],
)
def test_a_clock_that_is_off_is_said_in_words(off, said):
    assert words.skew(off).text == said
