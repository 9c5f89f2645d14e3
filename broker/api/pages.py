"""Page tokens: where a list goes on, sealed so that only the same list can be gone on with.

A token is a version, a seal and a position. The seal covers the position and every other parameter of the
request but page_size, so a token that was changed, or is sent with another filter, is a bad field and never
a wrong page. What a position means is the list's own affair; it is not secret.
"""

from __future__ import annotations

import hmac
from base64 import b64decode, urlsafe_b64encode
from binascii import Error as NotBase64
from hashlib import sha256

from google.protobuf.message import Message

from broker.api.digest import canonical
from broker.api.limits import LIMITS
from broker.core.errors import FieldReason, FieldsInvalid, FieldViolation

VERSION = b"\x01"
SEAL_BYTES = 16


class PageTokens:
    """Makes and reads tokens with one key; keep the key, and tokens outlive a restart."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def issue(self, position: str, request: Message) -> str:
        """The token with which this list goes on after `position`; "" there is no more."""
        if not position:
            return ""
        place = position.encode()
        return urlsafe_b64encode(VERSION + self._seal(place, request) + place).decode().rstrip("=")

    def read(self, token: str, request: Message, path: str = "page_token") -> str:
        """The position in a token, "" for none. Raises FieldsInvalid unless it was issued for this list."""
        if not token:
            return ""
        if len(token) > LIMITS.page_token:
            raise _bad(path, FieldReason.TOO_LONG, f"has {len(token)} characters; at most {LIMITS.page_token}")
        try:
            raw = b64decode(token + "=" * (-len(token) % 4), altchars="-_", validate=True)
        except (NotBase64, ValueError):
            raw = b""
        seal, place = raw[1 : 1 + SEAL_BYTES], raw[1 + SEAL_BYTES :]
        if raw[:1] != VERSION or not hmac.compare_digest(seal, self._seal(place, request)):
            raise _bad(
                path,
                FieldReason.BAD_CHARACTERS,
                "is no token of this list; send it as it was given, with the same parameters",
            )
        return place.decode()

    def _seal(self, place: bytes, request: Message) -> bytes:
        message = canonical(request, "page_token", "page_size") + b"\0" + place
        return hmac.digest(self._key, message, sha256)[:SEAL_BYTES]


def _bad(path: str, reason: FieldReason, message: str) -> FieldsInvalid:
    return FieldsInvalid([FieldViolation(path=path, reason=reason, message=message)])
