"""Names in client certificates."""

from collections.abc import Mapping
from typing import Any


def names_in(certificate: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Returns the names in a verified certificate (as from `SSLSocket.getpeercert`): the common name, then DNS names and URIs."""
    if not certificate:
        return ()
    common = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    others = [value for kind, value in certificate.get("subjectAltName", ()) if kind in ("DNS", "URI")]
    return tuple(dict.fromkeys([*common, *others]))
