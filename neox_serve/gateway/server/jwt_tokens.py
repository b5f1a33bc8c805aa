"""Tokens of an identity provider: who they say calls, once signature, issuer, audience and time have been checked.

PyJWT does the cryptography. Only algorithms with key pairs are taken: with any other, who knows the public key could make tokens.
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
"""A longer token is refused unread."""
REFRESH_S = 300.0
"""Between two looks at the provider's keys, where nothing asks for one earlier."""
SOONEST_REFRESH_S = 5.0
"""Tokens with unknown keys make the gateway look no more often than this."""
_FETCH_TIMEOUT_S = 5.0


class JwtVerifier:
    """Checks tokens. Keys are read by `refresh`; a key that is not known yet makes the next `refresh_due` true. clock: seconds, steady."""

    def __init__(self, settings: JwtSettings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._keys: dict[str, jwt.PyJWK] = {}
        self._read_at_s = -REFRESH_S
        self._unknown_seen = False

    @property
    def refresh_due(self) -> bool:
        """Whether the keys should be read again."""
        return self._clock() - self._read_at_s >= (SOONEST_REFRESH_S if self._unknown_seen else REFRESH_S)

    async def refresh(self) -> None:
        """Reads the provider's keys. Raises SettingsError where that fails; the keys known before stay."""
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
        """The tenant's name and the subject that a token speaks for. Raises UNAUTHENTICATED, saying what is wrong but never the token."""
        if len(token) > MAX_CHARACTERS:
            raise _refused(f"the token has {len(token)} characters, may have {MAX_CHARACTERS}")
        try:
            claims = self._claims(token)
        except jwt.PyJWTError as error:
            raise _refused(f"the token is not valid: {_explanation(error)}") from None
        tenant, subject = claims.get(self._settings.tenant_claim), claims["sub"]
        if not isinstance(tenant, str) or not isinstance(subject, str):
            raise _refused(f"the token's claims {self._settings.tenant_claim!r} and 'sub' must be texts")
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
    """Of our own choosing: a library's text might hold what the token says."""
    for kind, text in _EXPLANATIONS:
        if isinstance(error, kind):
            return text
    return "it cannot be read"


_EXPLANATIONS: tuple[tuple[type[jwt.PyJWTError], str], ...] = (
    (jwt.ExpiredSignatureError, "it has expired"),
    (jwt.ImmatureSignatureError, "it is not valid yet"),
    (jwt.InvalidAudienceError, "it is for another audience"),
    (jwt.InvalidIssuerError, "it is of another issuer"),
    (jwt.InvalidAlgorithmError, "its algorithm is not allowed"),
    (jwt.InvalidKeyError, "its key is not known"),
    (jwt.MissingRequiredClaimError, "a claim of exp, iss, aud, sub is missing"),
    (jwt.InvalidSignatureError, "its signature is wrong"),
)


def _refused(message: str) -> ServeError:
    return ServeError(Reason.UNAUTHENTICATED, message)
