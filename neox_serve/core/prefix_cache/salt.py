"""Cache salts: they keep tenants' prompts apart in prefix caches, so that response times reveal nothing about other tenants' prompts.

The salt is derived here and never taken from a request. Engines see only salts, which do not reveal the tenant without the secret.
Source of the threat: CVE-2025-46570.
"""

import hmac

_PURPOSE = b"neox-serve cache salt\0"


def cache_salt(secret: bytes, tenant: str) -> str:
    """Returns the salt for a tenant's requests, 32 hexadecimal digits. It depends only on the secret and the tenant."""
    return hmac.digest(secret, _PURPOSE + tenant.encode(), "sha256").hex()[:32]
