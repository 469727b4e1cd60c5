"""Published vectors of the signature schemes, and what each of them must refuse."""

from __future__ import annotations

import base64
import hashlib
import hmac
from datetime import UTC, datetime, timedelta

import pytest

from waybill.core.errors import InvalidInputError, UnauthenticatedError, WaybillError
from waybill.core.plugins import Plugins
from waybill.forge import signatures
from waybill.forge.model import Forge, StaleError, UnsignedError, WrongSignatureError

FORGES: Plugins[Forge] = Plugins("waybill.forge.adapters", "FORGE")
NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
BODY = b'{"ref":"refs/heads/main"}'
SECRET = "correct horse battery staple"
TOKEN = "whsec_" + base64.b64encode(bytes(range(32))).decode()


def hex_of(body: bytes = BODY, secret: str = SECRET) -> str:
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def standard(body=BODY, token=TOKEN, identity="msg_1", at=NOW, **more):
    seconds = str(int(at.timestamp()))
    key = base64.b64decode(token.removeprefix("whsec_"))
    mac = hmac.new(key, f"{identity}.{seconds}.".encode() + body, hashlib.sha256).digest()
    signature = "v1," + base64.b64encode(mac).decode()
    headers = {"webhook-id": identity, "webhook-timestamp": seconds, "webhook-signature": signature}
    return {**headers, "x-gitlab-event": "Push Hook", **more}


def own(body=BODY, secret=SECRET, identity="0192-a", at=NOW):
    seconds = str(int(at.timestamp()))
    mac = hmac.new(secret.encode(), f"{identity}.{seconds}.".encode() + body, hashlib.sha256).hexdigest()
    return {"waybill-delivery": identity, "waybill-timestamp": seconds, "waybill-signature": f"v1={mac}"}


def good(forge: str) -> tuple[dict[str, str], str]:
    """Rightly signed headers for BODY, and the secret."""
    match forge:
        case "github":
            headers = {"x-hub-signature-256": "sha256=" + hex_of(), "x-github-delivery": "d1", "x-github-event": "push"}
        case "gitea":
            headers = {"x-gitea-signature": hex_of(), "x-gitea-delivery": "d1", "x-gitea-event": "push"}
        case "forgejo":
            headers = {"x-forgejo-signature": hex_of(), "x-forgejo-delivery": "d1", "x-forgejo-event": "push"}
        case "gitlab":
            headers = {"x-gitlab-token": SECRET, "idempotency-key": "d1", "x-gitlab-event": "Push Hook"}
        case _:
            headers = own(identity="d1")
    return headers, SECRET


def refusal(forge: str, headers: dict[str, str], secret: str) -> str:
    try:
        FORGES[forge].verify(headers, BODY, secret, NOW)
    except WaybillError as error:
        return str(error)
    return ""


def test_every_forge_of_the_platform_is_found():
    assert set(FORGES) == {"github", "gitlab", "gitea", "forgejo", "generic"}


def test_github_published_vector():
    # docs.github.com, "Validating webhook deliveries": testing the webhook payload validation
    headers = {
        "x-hub-signature-256": "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17",
        "x-github-delivery": "72d3162e-cc78-11e3-81ab-4c9367dc0958",
        "x-github-event": "push",
    }
    told = FORGES["github"].verify(headers, b"Hello, World!", "It's a Secret to Everybody", NOW)
    assert (told.id, told.event) == ("72d3162e-cc78-11e3-81ab-4c9367dc0958", "push")
    with pytest.raises(WrongSignatureError):
        FORGES["github"].verify(headers, b"Hello, World", "It's a Secret to Everybody", NOW)


def test_standard_webhooks_published_vector():
    # standard-webhooks reference libraries, "sign function works"
    headers = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        "x-gitlab-event": "Push Hook",
    }
    secret, at = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", datetime.fromtimestamp(1614265330, UTC)
    told = FORGES["gitlab"].verify(headers, b'{"test": 2432232314}', secret, at)
    assert told.id == "msg_p5jXN8AQM9LWM0D4loKWxJek"
    with pytest.raises(WrongSignatureError):
        FORGES["gitlab"].verify(headers, b'{"test": 2432232315}', secret, at)


def test_hmac_sha256_published_vector():
    # RFC 4231 test case 2, as Gitea and Forgejo send it: bare hexadecimal
    mac = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    for forge in ("gitea", "forgejo"):
        headers = {f"x-{forge}-signature": mac, f"x-{forge}-event": "push"}
        FORGES[forge].verify(headers, b"what do ya want for nothing?", "Jefe", NOW)


@pytest.mark.parametrize("forge", FORGES)
class TestEveryForge:
    def test_a_right_signature_is_taken(self, forge):
        headers, secret = good(forge)
        assert FORGES[forge].verify(headers, BODY, secret, NOW).id == "d1"

    def test_unsigned_and_wrongly_signed_are_told_apart(self, forge):
        headers, secret = good(forge)
        bare = {name: value for name, value in headers.items() if "signature" not in name and "token" not in name}
        with pytest.raises(UnsignedError):
            FORGES[forge].verify(bare, BODY, secret, NOW)
        with pytest.raises(UnsignedError):
            FORGES[forge].verify({}, BODY, secret, NOW)
        with pytest.raises(WrongSignatureError) as wrong:
            FORGES[forge].verify(headers, BODY, "another secret", NOW)
        assert "another secret" not in str(wrong.value)

    def test_one_changed_byte_of_the_body_is_noticed(self, forge):
        headers, secret = good(forge)
        if forge == "gitlab":  # the older token proves nothing about the body
            headers, secret = standard(), TOKEN
        for changed in (BODY + b" ", BODY[:-1], BODY.replace(b"main", b"mait"), b""):
            with pytest.raises(WrongSignatureError):
                FORGES[forge].verify(headers, changed, secret, NOW)

    def test_no_sentence_holds_the_secret_or_what_would_have_been_right(self, forge):
        headers, secret = good(forge)
        for name in headers:
            for value in ("", "nonsense", headers[name] + "x", f"{headers[name]}\n{headers[name]}"):
                said = refusal(forge, {**headers, name: value}, secret)
                assert secret not in said
                assert hex_of() not in said

    def test_a_repeated_header_is_refused(self, forge):
        headers, secret = good(forge)
        for name, value in headers.items():
            raw = [(key.encode(), text.encode()) for key, text in headers.items()] + [(name.encode(), value.encode())]
            with pytest.raises((InvalidInputError, UnauthenticatedError), match="more than once"):
                FORGES[forge].verify(signatures.fold(raw), BODY, secret, NOW)

    def test_a_hook_without_a_secret_takes_nothing(self, forge):
        headers, _ = good(forge)
        forged = {**headers, "x-gitlab-token": "", "x-hub-signature-256": "sha256=" + hex_of(secret="")}
        for name in ("x-gitea-signature", "x-forgejo-signature"):
            forged[name] = hex_of(secret="")
        with pytest.raises(WaybillError):
            FORGES[forge].verify({**forged, **own(secret="")}, BODY, "", NOW)


@pytest.mark.parametrize("forge", ["github", "gitea", "forgejo"])
def test_sha1_alone_does_not_count(forge):
    mac = hmac.new(SECRET.encode(), BODY, hashlib.sha1).hexdigest()
    headers = {"x-hub-signature": f"sha1={mac}", f"x-{forge}-event": "push"}
    with pytest.raises(UnsignedError, match="SHA-1"):
        FORGES[forge].verify(headers, BODY, SECRET, NOW)
    with pytest.raises(WrongSignatureError):
        FORGES[forge].verify({**headers, "x-hub-signature-256": f"sha1={mac}"}, BODY, SECRET, NOW)


def test_a_wrong_own_signature_is_not_rescued_by_a_right_copy():
    right, wrong = hex_of(), hex_of(secret="other")
    copies = {"x-hub-signature-256": f"sha256={right}", "x-gitea-signature": right, "x-forgejo-event": "push"}
    with pytest.raises(WrongSignatureError, match="X-Forgejo-Signature"):
        FORGES["forgejo"].verify({**copies, "x-forgejo-signature": wrong}, BODY, SECRET, NOW)


def test_a_signing_token_is_not_replaced_by_the_weaker_token():
    headers = {"x-gitlab-token": TOKEN, "x-gitlab-event": "Push Hook"}
    with pytest.raises(UnsignedError, match="signing token"):
        FORGES["gitlab"].verify(headers, BODY, TOKEN, NOW)


def test_two_signatures_while_a_signing_token_is_replaced():
    headers = standard()
    for both in (f"v1,AAAA {headers['webhook-signature']}", f"{headers['webhook-signature']} v1a,BBBB"):
        assert FORGES["gitlab"].verify({**headers, "webhook-signature": both}, BODY, TOKEN, NOW).id == "msg_1"


@pytest.mark.parametrize("forge", ["gitlab", "generic"])
@pytest.mark.parametrize(("seconds", "taken"), [(0, True), (299, True), (-299, True), (301, False), (-301, False)])
def test_a_signed_time_may_differ_by_five_minutes(forge, seconds, taken):
    at = NOW - timedelta(seconds=seconds)
    headers, secret = (standard(at=at), TOKEN) if forge == "gitlab" else (own(at=at), SECRET)
    if taken:
        FORGES[forge].verify(headers, BODY, secret, NOW)
    else:
        with pytest.raises(StaleError, match="before" if seconds > 0 else "after"):
            FORGES[forge].verify(headers, BODY, secret, NOW)


@pytest.mark.parametrize("seconds", ["", "1.5", "-1", "١٢٣", "9" * 13, "1e9", "0x10"])
def test_a_time_that_is_none_is_refused(seconds):
    for headers, secret, forge in ((standard(), TOKEN, "gitlab"), (own(), SECRET, "generic")):
        name = "webhook-timestamp" if forge == "gitlab" else "waybill-timestamp"
        with pytest.raises((InvalidInputError, UnauthenticatedError)):
            FORGES[forge].verify({**headers, name: seconds}, BODY, secret, NOW)


def test_gitlab_deliveries_are_told_apart_before_they_had_a_key():
    headers = {"x-gitlab-token": SECRET, "x-gitlab-event": "Push Hook", "x-gitlab-event-uuid": "u1"}

    def identity(body, **more):
        return FORGES["gitlab"].verify({**headers, **more}, body, SECRET, NOW).id

    assert identity(b"{}") == identity(b"{}")
    assert identity(b"{}") != identity(b"[]"), "a chain of events shares the UUID"
    assert identity(b"{}", **{"idempotency-key": "k1"}) == "k1"


@pytest.mark.parametrize("forge", ["github", "gitea", "forgejo", "gitlab"])
def test_without_any_id_equal_bodies_are_the_same_delivery(forge):
    headers, secret = good(forge)
    bare = {name: value for name, value in headers.items() if "delivery" not in name and "key" not in name}
    assert FORGES[forge].verify(bare, BODY, secret, NOW).id == "sha256:" + hashlib.sha256(BODY).hexdigest()


@pytest.mark.parametrize("token", ["whsec_", "whsec_AAAA", "whsec_!!!!", "whsec_" + "A" * 400])
def test_a_signing_token_that_is_none_is_named(token):
    with pytest.raises(InvalidInputError, match="24 to 64 bytes"):
        signatures.standard_key(token)
