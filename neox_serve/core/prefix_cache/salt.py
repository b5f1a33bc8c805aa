"""What keeps tenants' prompts apart in prefix caches, so that no tenant learns from response times what another has asked.

The salt is derived here and never taken from a request. It tells nothing of the tenant to who has no secret: engines see salts only. Source
of the threat: CVE-2025-46570.
"""

import hmac

_PURPOSE = b"neox-serve cache salt\0"


def cache_salt(secret: bytes, tenant: str) -> str:
    """The salt of a tenant's requests: equal for equal tenants under one secret. 32 hexadecimal digits."""
    return hmac.digest(secret, _PURPOSE + tenant.encode(), "sha256").hex()[:32]
