"""Verification of JSON Web Tokens of an identity provider: signature, issuer, audience and validity period.

PyJWT does the cryptography. Only asymmetric algorithms are accepted; with others, anyone who knows the public key could make tokens.
"""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import structlog

from neox_serve.core.errors import Reason, ServeError
from neox_serve.settings import SettingsError
from neox_serve.settings.gateway import JwtSettings

_log = structlog.get_logger(__name__)

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
MAX_CHARACTERS = 8_192
"""Longer tokens are refused without parsing."""
REFRESH_S = 300.0
"""Seconds between two reads of the provider's keys."""
MIN_REFRESH_S = 5.0
"""Minimum seconds between two reads, however many tokens have unknown keys."""
_FETCH_TIMEOUT_S = 5.0


class JwtVerifier:
    """Verifies tokens. `refresh` reads the keys; a token with an unknown key makes a refresh due earlier."""

    def __init__(self, settings: JwtSettings, clock: Callable[[], float]) -> None:
        """`clock` returns seconds of a monotonic clock."""
        self._settings = settings
        self._clock = clock
        self._keys: dict[str, jwt.PyJWK] = {}
        self._read_at_s = -REFRESH_S
        self._unknown_seen = False

    @property
    def refresh_due(self) -> bool:
        """Whether the keys should be read again."""
        return self._clock() - self._read_at_s >= (MIN_REFRESH_S if self._unknown_seen else REFRESH_S)

    async def refresh(self) -> None:
        """Reads the provider's keys. Raises SettingsError if that fails; the previous keys then remain valid."""
        self._read_at_s, self._unknown_seen = self._clock(), False
        try:
            async with asyncio.timeout(_FETCH_TIMEOUT_S):
                text = await _read(self._settings.jwks)
            keys = [jwt.PyJWK(key) for key in json.loads(text)["keys"] if key.get("use", "sig") == "sig"]
        except Exception as error:
            raise SettingsError(f"access.jwt.jwks: cannot use {self._settings.jwks}: {type(error).__name__}: {error}") from error
        self._keys = {key.key_id or "": key for key in keys}
        _log.info("identity_provider_keys_loaded", keys=len(self._keys))

    def tenant(self, token: str) -> tuple[str, str]:
        """Returns the tenant and the subject of a token. Raises UNAUTHENTICATED, whose message never contains the token."""
        if len(token) > MAX_CHARACTERS:
            raise _refused(f"the token has {len(token)} characters; at most {MAX_CHARACTERS} are allowed")
        try:
            claims = self._claims(token)
        except jwt.PyJWTError as error:
            raise _refused(f"the token is not valid: {_explanation(error)}") from None
        tenant, subject = claims.get(self._settings.tenant_claim), claims["sub"]
        if not isinstance(tenant, str) or not isinstance(subject, str):
            raise _refused(f"the token's claims {self._settings.tenant_claim!r} and 'sub' must be strings")
        return tenant, subject

    def _claims(self, token: str) -> dict[str, Any]:
        header = jwt.get_unverified_header(token)
        algorithm = header.get("alg")
        if algorithm not in ALGORITHMS:
            raise jwt.InvalidAlgorithmError
        key = self._keys.get(str(header.get("kid", "")))
        if key is None:
            self._unknown_seen = True
            raise jwt.InvalidKeyError
        settings = self._settings
        claims: dict[str, Any] = jwt.decode(
            token,
            key.key,
            algorithms=[key.algorithm_name],
            issuer=settings.issuer,
            audience=settings.audience,
            leeway=settings.leeway_s,
            options={"require": ["exp", "iss", "aud", "sub"]},
        )
        return claims


async def _read(source: str) -> str:
    if not source.startswith(("http://", "https://")):
        return await asyncio.to_thread(Path(source).read_text, encoding="utf-8")
    import aiohttp

    async with aiohttp.ClientSession() as session, session.get(source, raise_for_status=True) as response:
        return await response.text()


def _explanation(error: jwt.PyJWTError) -> str:
    """Returns our own explanation, because the library's message may contain parts of the token."""
    for kind, text in _EXPLANATIONS:
        if isinstance(error, kind):
            return text
    return "it is malformed"


_EXPLANATIONS: tuple[tuple[type[jwt.PyJWTError], str], ...] = (
    (jwt.ExpiredSignatureError, "it has expired"),
    (jwt.ImmatureSignatureError, "it is not valid yet"),
    (jwt.InvalidAudienceError, "it was issued for another audience"),
    (jwt.InvalidIssuerError, "it was issued by another issuer"),
    (jwt.InvalidAlgorithmError, "its algorithm is not allowed"),
    (jwt.InvalidKeyError, "its key is unknown"),
    (jwt.MissingRequiredClaimError, "it lacks one of the claims exp, iss, aud and sub"),
    (jwt.InvalidSignatureError, "its signature is wrong"),
)


def _refused(message: str) -> ServeError:
    return ServeError(Reason.UNAUTHENTICATED, message)
