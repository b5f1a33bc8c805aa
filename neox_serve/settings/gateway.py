"""Sections about the public API: request limits, the gateways' ports and TLS, and the authentication of callers."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from neox_serve.settings.sections import Section, node_resource


class LimitSettings(Section):
    """Limits of a single request. A request that exceeds one is rejected."""

    prompts_per_request: int = Field(64, ge=1, description="Maximum number of prompts or inputs in one request.")
    n: int = Field(16, ge=1, description="Maximum number of completions per prompt (parameter `n`).")
    beam_width: int = Field(8, ge=1, description="Maximum beam width of a beam search.")
    logprobs: int = Field(20, ge=0, description="Maximum number of alternatives per position for which log-probabilities are returned.")
    request_bytes: int = Field(1_572_864, ge=1024, description="Maximum size of a request message, in bytes.")
    idempotency_window_s: float = Field(
        60.0,
        ge=0,
        description="Seconds for which a gateway stores a response and returns it to retries with the same `request_id`.",
    )
    idempotency_max_bytes: int = Field(
        67_108_864, ge=0, description="Maximum memory, in bytes, that stored responses may take in one gateway."
    )


class GatewaySettings(Section):
    """The gateways: processes that serve the public gRPC API."""

    host: str = Field("127.0.0.1", description="Address that gateways listen on. 0.0.0.0 listens on all IPv4 interfaces.")
    port: int = Field(50051, ge=0, le=65535, description="TCP port that all gateways of a node share. 0 chooses a free port.")
    processes: int = Field(2, ge=1, le=64, description="Number of gateway processes on each node that runs gateways.")
    max_concurrent_requests: int = Field(
        1024, ge=1, description="Maximum number of requests in progress in one gateway. Further requests are rejected with OVERLOADED."
    )
    stalled_client_timeout_s: float = Field(
        30.0, gt=0, description="Seconds after which a call is aborted if its client reads none of the data sent to it."
    )
    default_deadline_s: float = Field(600.0, gt=0, description="Deadline, in seconds, of calls for which the client sets none.")
    drain_timeout_s: float = Field(
        120.0, gt=0, description="Maximum time, in seconds, that a gateway that shuts down continues to serve the calls it has accepted."
    )
    tls_certificate: Path | None = Field(
        None, description="PEM file with the server's certificate chain. Requires tls_key. Unset: the port speaks plain text."
    )
    tls_key: Path | None = Field(None, description="PEM file with the private key of tls_certificate.")
    tls_client_ca: Path | None = Field(
        None, description="PEM file with the authorities that sign client certificates. Setting it enables mutual TLS."
    )
    tls_client_certificates: Literal["required", "optional"] = Field(
        "required",
        description="Whether clients must present a certificate if tls_client_ca is set. With `optional`, a client without a certificate "
        "must present another credential.",
    )
    node_resource: str | None = node_resource()

    @model_validator(mode="after")
    def _check_tls_files(self) -> "GatewaySettings":
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key must be set together")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_client_ca requires tls_certificate and tls_key")
        return self


class JwtSettings(Section):
    """JSON Web Tokens (RFC 7519) of an identity provider, which callers may present as `authorization: Bearer`."""

    jwks: str = Field(min_length=1, description="The provider's public keys as a JWK set: a file path or an https URL.")
    issuer: str = Field(min_length=1, description="Required value of the claim `iss`.")
    audience: str = Field(min_length=1, description="Value that the claim `aud` must equal or contain.")
    tenant_claim: str = Field("tenant", min_length=1, description="Name of the claim that holds the tenant's name.")
    leeway_s: float = Field(30.0, ge=0, le=300, description="Allowed clock difference, in seconds, between the provider and the gateways.")


class AccessSettings(Section):
    """Authentication, and the database of tenants, usage and jobs."""

    allow_anonymous: bool | None = Field(
        None,
        description="Whether callers without credentials are accepted. They act as the tenant `anonymous` and have every role. "
        "Unset: they are accepted only if gateway.host is a loopback address.",
    )
    database_url: str | None = Field(
        None,
        description="SQLAlchemy URL of the database, for example postgresql+psycopg://user@host/name. "
        "Unset: an SQLite file in the state folder.",
    )
    database_url_file: Path | None = Field(
        None, description="File that holds the database URL, for URLs that contain a password. Excludes database_url."
    )
    secret_file: Path | None = Field(
        None,
        description="File with the secret (at least 32 bytes) that authenticates usage records and salts cache keys. All gateways must use "
        "the same secret. Unset: a secret is generated in the state folder.",
    )
    jwt: JwtSettings | None = Field(None, description="Validation of JSON Web Tokens. Unset: tokens are not accepted.")

    @model_validator(mode="after")
    def _check_single_url(self) -> "AccessSettings":
        if self.database_url is not None and self.database_url_file is not None:
            raise ValueError("only one of database_url and database_url_file may be set")
        return self
