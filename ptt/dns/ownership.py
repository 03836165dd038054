"""Which TXT records of a zone are ours to write: the marker beside them. Pure.

A record at NAME is ours when a TXT record at ``_ptt.NAME`` says so:

    _ptt.s1._domainkey.example.org. TXT "v=ptt1; host=mail.example.org; sha256=..."

``host`` is the service that wrote it, ``sha256`` of what it wrote. It is written, changed and removed in one
transaction with the record. A record without it, or with the marker of another host, is never touched.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

Standing = Literal["free", "same", "ours", "edited", "foreign"]
"""free: nothing there. same: what we want is there. ours: as we wrote it, or an older one of ours. edited: we wrote
something else than what is there now. foreign: somebody else's."""


def marker_name(name: str) -> str:
    """Where the marker of a record at ``name`` lies."""
    return f"_ptt.{name}"


def marker_text(host: str, value: bytes) -> bytes:
    """The marker of ``value``, written by ``host``."""
    return f"v=ptt1; host={host.lower()}; sha256={hashlib.sha256(value).hexdigest()}".encode()


def standing(found: Sequence[bytes], same: bool, markers: Sequence[bytes], host: str) -> Standing:
    """Whose the records ``found`` at a name are, by the ``markers`` beside them. ``same``: they are what we want."""
    if same:
        return "same"
    known = [tags for tags in map(_tags, markers) if tags.get("v") == "ptt1" and tags.get("host") == host.lower()]
    if markers and not known:
        return "foreign"
    if not found:
        return "free"
    if not known:
        return "foreign"
    written = {tags.get("sha256") for tags in known}
    return "ours" if {hashlib.sha256(value).hexdigest() for value in found} <= written else "edited"


def _tags(marker: bytes) -> dict[str, str]:
    parts = (part.strip().partition("=") for part in marker.decode("utf-8", "replace").split(";"))
    return {name: value for name, equals, value in parts if equals}
