"""JSON Web Tokens: every forged token is refused, and no error message shows the token."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from neox_serve.core.errors import Reason, ServeError
from neox_serve.gateway.server.jwt_tokens import MAX_CHARACTERS, MIN_REFRESH_S, REFRESH_S, JwtVerifier
from neox_serve.settings import SettingsError
from neox_serve.settings.gateway import JwtSettings

RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()
OTHER_KEY = rsa.generate_private_key(65537, 2048)


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def write_keys(file: Path, **keys: Any) -> None:
    algorithms: dict[type, Any] = {
        rsa.RSAPrivateKey: (RSAAlgorithm, "RS256"),
        ec.EllipticCurvePrivateKey: (ECAlgorithm, "ES256"),
        ed25519.Ed25519PrivateKey: (OKPAlgorithm, "EdDSA"),
    }
    written = []
    for key_id, key in keys.items():
        converter, algorithm = next(pair for kind, pair in algorithms.items() if isinstance(key, kind))
        written.append(json.loads(converter.to_jwk(key.public_key())) | {"kid": key_id, "alg": algorithm, "use": "sig"})
    file.write_text(json.dumps({"keys": written}))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "jwks.json"
    write_keys(file, rsa=RSA_KEY, ec=EC_KEY, ed=ED_KEY)
    return file


@pytest.fixture
async def verifier(file: Path) -> JwtVerifier:
    made = JwtVerifier(JwtSettings(jwks=str(file), issuer="https://id", audience="neox", leeway_s=5), Clock())
    await made.refresh()
    return made


def _due(verifier: JwtVerifier) -> bool:
    return verifier.refresh_due


def claims(**changes: Any) -> dict[str, Any]:
    values = {"iss": "https://id", "aud": "neox", "sub": "jane", "tenant": "acme", "exp": time.time() + 60} | changes
    return {name: value for name, value in values.items() if value is not None}


def token(key: Any = RSA_KEY, algorithm: str = "RS256", key_id: str = "rsa", **changes: Any) -> str:
    return jwt.encode(claims(**changes), key, algorithm, headers={"kid": key_id})


def refused(verifier: JwtVerifier, text: str) -> str:
    with pytest.raises(ServeError) as caught:
        verifier.tenant(text)
    assert caught.value.reason is Reason.UNAUTHENTICATED
    for part in filter(None, text.split(".")):
        assert part not in str(caught.value)
    return caught.value.message


@pytest.mark.parametrize(("key", "algorithm", "key_id"), [(RSA_KEY, "RS256", "rsa"), (EC_KEY, "ES256", "ec"), (ED_KEY, "EdDSA", "ed")])
def test_valid_token_returns_tenant_and_subject(verifier: JwtVerifier, key: Any, algorithm: str, key_id: str) -> None:
    assert verifier.tenant(token(key, algorithm, key_id)) == ("acme", "jane")


BAD: dict[str, tuple[Callable[[], str], str]] = {
    "expired": (lambda: token(exp=time.time() - 10), "expired"),
    "not valid yet": (lambda: token(nbf=time.time() + 60), "not valid yet"),
    "another audience": (lambda: token(aud="other"), "another audience"),
    "another issuer": (lambda: token(iss="https://evil"), "another issuer"),
    "without end": (lambda: token(exp=None), "lacks one of the claims exp"),
    "without subject": (lambda: token(sub=None), "lacks one of the claims exp"),
    "another key": (lambda: token(OTHER_KEY), "signature is wrong"),
    "unknown key": (lambda: token(OTHER_KEY, key_id="new"), "key is unknown"),
    "unsigned": (lambda: token().rsplit(".", 1)[0] + ".", "signature is wrong"),
    "alg none": (lambda: jwt.encode(claims(), "", "none", headers={"kid": "rsa"}), "algorithm is not allowed"),
    "key's algorithm changed": (lambda: token(EC_KEY, "ES256", "rsa"), "algorithm is not allowed"),
    "no tenant": (lambda: token(tenant=None), "must be strings"),
    "tenant that is no text": (lambda: token(tenant=7), "must be strings"),
    "no token": (lambda: "hello", "malformed"),
    "oversized": (lambda: token(filler="x" * MAX_CHARACTERS), f"at most {MAX_CHARACTERS}"),
}


@pytest.mark.parametrize("kind", BAD)
def test_invalid_token_is_refused_without_showing_it(verifier: JwtVerifier, kind: str) -> None:
    make, words = BAD[kind]
    assert words in refused(verifier, make())


def test_token_signed_with_the_public_key_as_a_shared_secret_is_refused(verifier: JwtVerifier) -> None:
    import hashlib
    import hmac

    def part(value: dict[str, Any]) -> bytes:
        return jwt.utils.base64url_encode(json.dumps(value).encode())

    public = RSA_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signed = part({"alg": "HS256", "typ": "JWT", "kid": "rsa"}) + b"." + part(claims())
    signature = jwt.utils.base64url_encode(hmac.new(public, signed, hashlib.sha256).digest())
    assert "algorithm is not allowed" in refused(verifier, (signed + b"." + signature).decode())


def test_clock_skew_within_the_leeway_is_accepted(verifier: JwtVerifier) -> None:
    assert verifier.tenant(token(exp=time.time() - 3)) == ("acme", "jane")


async def test_unknown_key_makes_a_refresh_due_soon(file: Path) -> None:
    clock = Clock()
    verifier = JwtVerifier(JwtSettings(jwks=str(file), issuer="https://id", audience="neox"), clock)
    assert _due(verifier) is True
    await verifier.refresh()
    write_keys(file, new=OTHER_KEY)
    clock.now_s = MIN_REFRESH_S
    assert _due(verifier) is False
    refused(verifier, token(OTHER_KEY, key_id="new"))
    assert _due(verifier) is True
    await verifier.refresh()
    assert verifier.tenant(token(OTHER_KEY, key_id="new")) == ("acme", "jane")
    assert "key is unknown" in refused(verifier, token())
    clock.now_s += REFRESH_S
    assert _due(verifier) is True


async def test_failed_refresh_keeps_the_previous_keys(verifier: JwtVerifier, file: Path) -> None:
    write_keys(file)
    os.truncate(file, 1)
    with pytest.raises(SettingsError, match=r"access\.jwt\.jwks"):
        await verifier.refresh()
    assert verifier.tenant(token()) == ("acme", "jane")
