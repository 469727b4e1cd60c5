"""The value cipher of SOPS: AES-256-GCM over one value, bound to the place where it stands.

A value becomes ``ENC[AES256_GCM,data:…,iv:…,tag:…,type:…]`` with a random 32-byte nonce (longer than the usual 12,
as SOPS has it) and the path of its keys as associated data, so that it opens nowhere else.
"""

from __future__ import annotations

import base64
import os
import re

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

PREFIX = "ENC[AES256_GCM,"
_BASE64 = "([A-Za-z0-9+/]+={0,2})"
_VALUE = re.compile(rf"ENC\[AES256_GCM,data:{_BASE64},iv:{_BASE64},tag:{_BASE64},type:([a-z]+)\]")


def seal(key: bytes, kind: str, plaintext: bytes, bound_to: str) -> str:
    """The value in its ``ENC[…]`` form, with a fresh nonce."""
    nonce = os.urandom(32)
    sealed = AESGCM(key).encrypt(nonce, plaintext, bound_to.encode())
    data, iv, tag = (base64.b64encode(part).decode() for part in (sealed[:-16], nonce, sealed[-16:]))
    return f"ENC[AES256_GCM,data:{data},iv:{iv},tag:{tag},type:{kind}]"


def unseal(key: bytes, sealed: str, bound_to: str) -> tuple[str, bytes] | None:
    """Type and plaintext of an ``ENC[…]`` value; None when it is malformed, changed or bound to something else."""
    match = _VALUE.fullmatch(sealed)
    if match is None:
        return None
    try:
        data, nonce, tag = (base64.b64decode(part, validate=True) for part in match.groups()[:3])
        if len(tag) != 16:
            return None
        return match[4], AESGCM(key).decrypt(nonce, data + tag, bound_to.encode())
    except (ValueError, InvalidTag):
        return None
