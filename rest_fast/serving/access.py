"""Who may ask a server for anything: whoever has its token, from a page that it served itself or that was allowed."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Access:
    """``token``: None where everybody on this machine may come. ``origins``: pages of other servers that may."""

    token: str | None = None
    origins: frozenset[str] = frozenset()

    @classmethod
    def of(cls, token: str | None, origins: Iterable[str] = ()) -> Access:
        return cls(token, frozenset(origin.rstrip("/") for origin in origins))

    def refusal(self, headers: Mapping[str, str], query: Mapping[str, str]) -> str | None:
        """Why a request is refused; None where it is not. Browsers name the page in ``Origin``, other programs do
        not; a WebSocket of a browser can carry the token in the address alone."""
        origin = headers.get("origin")
        if origin is not None and origin != "null" and origin.rstrip("/") in self.origins:
            origin = None
        if origin is not None and (origin == "null" or urlsplit(origin).netloc != headers.get("host")):
            return "origin: expected this server's own page or one that was allowed, got another"
        if self.token is None:
            return None if self._is_ours(headers.get("host", "")) else "host: expected this machine, got another name"
        scheme, _, given = headers.get("authorization", "").partition(" ")
        given = given if scheme.lower() == "bearer" else query.get("token", "")
        if not secrets.compare_digest(given.encode(), self.token.encode()):
            return "token: expected the server's, got none or another"
        return None

    def _is_ours(self, host: str) -> bool:
        """Whether a request was for this machine or an allowed name. Without a token that matters: a foreign page's
        name may be made to lead here, and its requests have that name as origin and as host."""
        name = urlsplit(f"//{host}").hostname or ""
        if name == "localhost" or any(urlsplit(origin).netloc == host for origin in self.origins):
            return True
        try:
            return bool(ip_address(name))
        except ValueError:
            return False
