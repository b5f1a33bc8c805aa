"""Keys of an identity provider, fetched over HTTP."""

import asyncio
import json
import time

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from neox_serve.gateway.server.jwt_tokens import JwtVerifier
from neox_serve.settings import SettingsError
from neox_serve.settings.gateway import JwtSettings


async def test_keys_are_fetched_and_a_failing_provider_changes_nothing() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    public = ECAlgorithm.to_jwk(key.public_key(), as_dict=True) | {"kid": "k", "alg": "ES256"}
    broken = False

    async def keys(_request: web.Request) -> web.Response:
        return web.Response(status=500) if broken else web.Response(text=json.dumps({"keys": [public]}))

    application = web.Application()
    application.router.add_get("/jwks.json", keys)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    verifier = JwtVerifier(JwtSettings(jwks=f"http://127.0.0.1:{port}/jwks.json", issuer="i", audience="a"), time.monotonic)
    await verifier.refresh()
    claims = {"iss": "i", "aud": "a", "sub": "jane", "tenant": "acme", "exp": time.time() + 60}
    token = jwt.encode(claims, key, "ES256", headers={"kid": "k"})
    assert verifier.tenant(token) == ("acme", "jane")
    broken = True
    with pytest.raises(SettingsError, match="500"):
        await verifier.refresh()
    assert verifier.tenant(token) == ("acme", "jane")
    await asyncio.wait_for(runner.cleanup(), 10)
