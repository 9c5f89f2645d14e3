"""Resource names: taken apart and put together.

    pools/{pool}   pools/{pool}/hosts/{host}   pools/{pool}/strays/{stray}
    tenants/{tenant}   tenants/{tenant}/workspaces/{workspace}   tenants/- (a parent only: all one may see)
    tenants/{tenant}/ensembles/{ensemble}

Pool, tenant, workspace and ensemble are ids of the broker's form; host and stray are the backend's own words,
percent-encoded here and nowhere else. A name of another form is a violation of the field it stands in,
whose path the caller gives; whether the thing exists is not asked here.
"""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

from broker.api.fields import IDENTIFIER, shown
from broker.api.limits import LIMITS
from broker.core.errors import FieldReason, FieldsInvalid, FieldViolation

_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
EVERY_TENANT = "-"


def pool_name(pool: str) -> str:
    """pools/{pool}."""
    return f"pools/{pool}"


def host_name(pool: str, host: str) -> str:
    """pools/{pool}/hosts/{host}."""
    return f"pools/{pool}/hosts/{quote(host, safe='')}"


def stray_name(pool: str, stray: str) -> str:
    """pools/{pool}/strays/{stray}."""
    return f"pools/{pool}/strays/{quote(stray, safe='')}"


def tenant_name(tenant: str) -> str:
    """tenants/{tenant}."""
    return f"tenants/{tenant}"


def workspace_name(tenant: str, workspace: str) -> str:
    """tenants/{tenant}/workspaces/{workspace}."""
    return f"tenants/{tenant}/workspaces/{workspace}"


def ensemble_name(tenant: str, ensemble: str) -> str:
    """tenants/{tenant}/ensembles/{ensemble}."""
    return f"tenants/{tenant}/ensembles/{ensemble}"


def pool(text: str, path: str = "name") -> str:
    """The pool of pools/{pool}."""
    return _ids(text, path, "pools/{pool}", "pools")[0]


def host(text: str, path: str = "name") -> tuple[str, str]:
    """Pool and host of pools/{pool}/hosts/{host}."""
    return _of_pool(text, path, "hosts", "host")


def stray(text: str, path: str = "name") -> tuple[str, str]:
    """Pool and backend id of pools/{pool}/strays/{stray}."""
    return _of_pool(text, path, "strays", "stray")


def _of_pool(text: str, path: str, collection: str, kind: str) -> tuple[str, str]:
    form = f"pools/{{pool}}/{collection}/{{{kind}}}"
    parts = text.split("/")
    if len(parts) != 4 or parts[2] != collection:
        raise _wrong(text, path, form)
    of = _ids("/".join(parts[:2]), path, form, "pools", whole=text)[0]
    return of, _backend_word(parts[3], text, path, form)


def tenant(text: str, path: str = "parent") -> str:
    """The tenant of tenants/{tenant}."""
    return _ids(text, path, "tenants/{tenant}", "tenants")[0]


def tenants(text: str, path: str = "parent") -> str | None:
    """The tenant of tenants/{tenant}, or None for tenants/-."""
    if text == f"tenants/{EVERY_TENANT}":
        return None
    return _ids(text, path, "tenants/{tenant} or tenants/-", "tenants")[0]


def workspace(text: str, path: str = "name") -> tuple[str, str]:
    """Tenant and workspace of tenants/{tenant}/workspaces/{workspace}."""
    owner, own = _ids(text, path, "tenants/{tenant}/workspaces/{workspace}", "tenants", "workspaces")
    return owner, own


def ensemble(text: str, path: str = "name") -> tuple[str, str]:
    """Tenant and ensemble of tenants/{tenant}/ensembles/{ensemble}."""
    owner, own = _ids(text, path, "tenants/{tenant}/ensembles/{ensemble}", "tenants", "ensembles")
    return owner, own


def _ids(text: str, path: str, form: str, *collections: str, whole: str | None = None) -> list[str]:
    parts = text.split("/") if len(text) <= 1_000 else []
    if parts[::2] != list(collections) or len(parts) != 2 * len(collections):
        raise _wrong(text if whole is None else whole, path, form)
    ids = parts[1::2]
    if not all(IDENTIFIER.fullmatch(each) for each in ids):
        raise _wrong(text if whole is None else whole, path, form)
    return ids


def _backend_word(encoded: str, whole: str, path: str, form: str) -> str:
    try:
        word = "" if _BAD_ESCAPE.search(encoded) else unquote(encoded, errors="strict")
    except UnicodeDecodeError:
        word = ""
    if not (0 < len(word) <= LIMITS.name and word.isprintable()):
        raise _wrong(whole, path, form)
    return word


def _wrong(text: str, path: str, form: str) -> FieldsInvalid:
    if not text:
        violation = FieldViolation(path=path, reason=FieldReason.REQUIRED, message=f"is missing; {form}")
    elif len(text) > 1_000:
        violation = FieldViolation(
            path=path, reason=FieldReason.TOO_LONG, message=f"has {len(text)} characters; {form}"
        )
    else:
        violation = FieldViolation(
            path=path,
            reason=FieldReason.BAD_CHARACTERS,
            message=f"{shown(text, 100)} is not of the form {form}",
        )
    return FieldsInvalid([violation])
