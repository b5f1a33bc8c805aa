"""Sections on what stands around the engines: gateways, access, router, scaling, and how all of it is seen."""

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, model_validator

from neox_serve.core.scheduling.routing import DEFAULT_IMBALANCE_THRESHOLD_TOKENS
from neox_serve.settings.sections import Section, node_resource


class LimitSettings(Section):
    """The most that one request may ask."""

    prompts_per_request: int = Field(64, ge=1)
    n: int = Field(16, ge=1)
    beam_width: int = Field(8, ge=1)
    logprobs: int = Field(20, ge=0)
    request_bytes: int = Field(1_572_864, ge=1024)
    idempotency_window_s: float = Field(60.0, ge=0, description="How long a gateway returns the stored response to a repeated request_id")
    idempotency_max_bytes: int = Field(67_108_864, ge=0, description="Memory that stored responses may take in one gateway")


class GatewaySettings(Section):
    """The public gRPC servers."""

    host: str = "127.0.0.1"
    port: int = Field(50051, ge=0, le=65535)
    processes: int = Field(2, ge=1, le=64, description="Gateways on this port, on each node that has any")
    max_concurrent_requests: int = Field(1024, ge=1, description="Of one gateway; more are refused with OVERLOADED")
    stalled_client_timeout_s: float = Field(30.0, gt=0, description="A client that reads nothing this long loses its call")
    default_deadline_s: float = Field(600.0, gt=0, description="For calls that bring no deadline")
    drain_timeout_s: float = Field(120.0, gt=0)
    tls_certificate: Path | None = Field(None, description="PEM chain; with tls_key the port speaks TLS")
    tls_key: Path | None = None
    tls_client_ca: Path | None = Field(None, description="PEM; clients show a certificate signed by it")
    tls_client_certificates: Literal["required", "optional"] = Field(
        "required", description="With tls_client_ca: whether clients may also come without one, and show another credential"
    )
    node_resource: str | None = node_resource()

    @model_validator(mode="after")
    def _certificate_and_key_come_together(self) -> "GatewaySettings":
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key must be set together")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_client_ca needs tls_certificate and tls_key")
        return self


class JwtSettings(Section):
    """Tokens of an identity provider (RFC 7519, signed with a key pair) that callers may show as `authorization: Bearer`."""

    jwks: str = Field(min_length=1, description="The provider's public keys as a JWK set: a file, or an https URL")
    issuer: str = Field(min_length=1, description="What `iss` must be")
    audience: str = Field(min_length=1, description="What `aud` must be or contain")
    tenant_claim: str = Field("tenant", min_length=1, description="The claim that holds the tenant's name")
    leeway_s: float = Field(30.0, ge=0, le=300, description="How far the provider's clock may be off")


class AccessSettings(Section):
    """Who may call, and where that is kept."""

    anonymous: bool | None = Field(
        None,
        description="Callers without credentials are the tenant `anonymous`, with every role; default: where gateway.host is loopback",
    )
    database_url: str | None = Field(
        None, description="SQLAlchemy URL, such as postgresql+psycopg://user@host/name; default: SQLite in the state folder"
    )
    database_url_file: Path | None = Field(None, description="A file that holds the URL, where it is nobody's to read in the settings")
    secret_file: Path | None = Field(
        None,
        description="Key of usage chains and cache salts, 32 bytes or more, one for all gateways; default: made in the state folder",
    )
    jwt: JwtSettings | None = None

    @model_validator(mode="after")
    def _one_place_for_the_url(self) -> "AccessSettings":
        if self.database_url is not None and self.database_url_file is not None:
            raise ValueError("only one of database_url and database_url_file may be set")
        return self


class RouterSettings(Section):
    """The router."""

    host: str = Field("127.0.0.1", pattern=r"^[0-9a-fA-F.:]+$", description="Address of the internal links; 0.0.0.0: each node's own")
    port: int = Field(0, ge=0, le=65535, description="0: any free one")
    peer_grace_s: float = Field(3.0, ge=0, description="How long a lost peer's leases are kept for its return")
    load_interval_s: float = Field(0.25, gt=0, description="Between a replica's load reports")
    queue_requests: int = Field(
        4_096, ge=0, description="Requests that wait for a replica of one model and pool; more push out the least important"
    )
    queue_tokens: int = Field(8_000_000, ge=0, description="Tokens that those may claim together")
    queue_wait_s: float = Field(60.0, gt=0, description="Longest wait")
    policy: Literal["least-tokens", "power-of-two", "prefix-affinity", "kv-aware", "session"] = Field(
        "kv-aware",
        description="What decides which replica takes a request: its work, or that of two drawn, the prompt's beginning, its prefix cache, "
        "or the metadata neox-session",
    )
    imbalance_threshold_tokens: int = Field(
        DEFAULT_IMBALANCE_THRESHOLD_TOKENS,
        ge=0,
        description="Tokens that a replica may have to do more than the least loaded, until prefix, session and adapter bind nothing to it",
    )
    bulk_requests: int = Field(
        112, ge=1, description="BULK requests for each replica while nobody else is about; below its batch, so that who comes finds a place"
    )
    bulk_requests_beside: int = Field(2, ge=1, description="BULK requests for each replica while others' run, or have just ended")
    node_resource: str | None = node_resource()


class ScalingSettings(Section):
    """How many replicas pools whose `replicas.min` and `replicas.max` differ should have: what is promised, and what a replica can do.

    The defaults of the latter are GPT-NeoX-20B's on two A100-80GB; `neox-serve simulate --calibration` shows where they come from.
    """

    policy: Literal["token-aware", "target-ongoing-requests", "target-ttft", "kpa", "saturation", "forecast"] = "token-aware"
    interval_s: float = Field(1.0, gt=0, description="Between two decisions")
    gpu_budget: float | None = Field(None, gt=0, description="GPUs that all pools may take together; absent: as many as replicas.max allow")
    ttft_s: float = Field(2.0, gt=0, description="Promised time to first token")
    tpot_s: float = Field(0.1, gt=0, description="Promised time per further token")
    attainment_fraction: float = Field(0.99, gt=0, lt=1, description="Of requests that keep both")
    startup_s: float = Field(60.0, gt=0, description="Of a replica, until one has been measured")
    headroom: float = Field(1.1, gt=0, description="token-aware: demand that is provided for, over the expected")
    level_s: float = Field(
        300.0, gt=0, description="token-aware: over which the level of demand is taken; twice this passes before it scales down"
    )
    history_s: float = Field(7200.0, ge=10, description="token-aware: of demand that is remembered, and provided for if it comes again")
    hold_startups: float = Field(
        2.0, ge=1, description="token-aware: for how many times the start-up fewer replicas must have done, until it scales down"
    )
    hold_beyond_s: float = Field(90.0, ge=0, description="token-aware: for how long beyond these they must have done")
    idle_s: float = Field(300.0, ge=0, description="token-aware: without requests until a pool with replicas.min 0 goes to zero")
    target_requests: float = Field(32.0, gt=0, description="target-ongoing-requests: requests a replica should carry")
    look_back_s: float = Field(30.0, gt=0, description="target-ongoing-requests: over which they are counted")
    upscale_delay_s: float = Field(30.0, ge=0, description="target-ongoing-requests: how long more must be wanted")
    downscale_delay_s: float = Field(600.0, ge=0, description="target-ongoing-requests: how long fewer must be wanted")
    step_s: float = Field(0.0181, gt=0, description="A step's time for reading the weights")
    step_per_sequence_s: float = Field(6.3e-5, ge=0, description="What each sequence adds to it")
    step_per_resident_token_s: float = Field(3.6e-7, ge=0, description="What each token in the KV cache adds to it")
    per_prompt_token_s: float = Field(1.06e-4, ge=0, description="What each prompt token takes")
    kv_tokens: int = Field(100_352, ge=1, description="That a replica's KV cache holds")


class BatchSettings(Section):
    """Batch jobs of tenants, which run in this Ray cluster and call its gateways."""

    folder: str | None = Field(
        None,
        min_length=1,
        description="Where jobs' files are, each tenant's in a folder of its name: a path that all nodes see, or a URL of fsspec's such as "
        "s3://bucket/jobs; default: batch in the state folder",
    )
    tasks_folder: Path | None = Field(
        None,
        description="Folder on all nodes with tasks that evaluate jobs may name beside lm-evaluation-harness's own, as that takes it with "
        "--include_path; tasks are code, which runs with the cluster's rights",
    )
    running_jobs: int = Field(4, ge=1, description="At once; more wait for their turn")
    address: str | None = Field(None, description="Gateway that jobs call, host:port; default: the one of gateway.host and gateway.port")
    tls_ca: Path | None = Field(None, description="PEM of the authority that has signed the gateway's certificate")
    tls_certificate: Path | None = Field(None, description="PEM certificate that jobs show, where gateways ask for one")
    tls_key: Path | None = None

    @model_validator(mode="after")
    def _certificate_and_key_come_together(self) -> "BatchSettings":
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key must be set together")
        return self


class LinkSettings(Section):
    """Mutual TLS between router, gateways and replicas. Absent: plain text, for a network that only they are on."""

    certificate: Path | None = Field(None, description="PEM chain of every process, for the name server_name")
    key: Path | None = None
    ca: Path | None = Field(None, description="PEM of the authority that has signed it")
    server_name: str = Field("neox-serve", min_length=1, description="The name that the certificates carry")

    @model_validator(mode="after")
    def _all_or_none(self) -> "LinkSettings":
        if len({part is None for part in (self.certificate, self.key, self.ca)}) != 1:
            raise ValueError("certificate, key and ca must be set together")
        return self


class MetricsSettings(Section):
    """The scrape page of the whole cluster, served by the router."""

    enabled: bool = True
    host: str = "127.0.0.1"
    port: int = Field(9464, ge=0, le=65535)


class ClientSettings(Section):
    """What this machine's commands show to a gateway."""

    api_key: SecretStr | None = Field(
        None, description="API key or token; better in the environment or api_key_file than in a settings file"
    )
    api_key_file: Path | None = Field(None, description="A file that holds it")

    @model_validator(mode="after")
    def _one_place_for_the_key(self) -> "ClientSettings":
        if self.api_key is not None and self.api_key_file is not None:
            raise ValueError("only one of api_key and api_key_file may be set")
        return self


class TracingSettings(Section):
    """OpenTelemetry traces of calls, across gateway, router and replicas."""

    endpoint: str | None = Field(None, description="OTLP over HTTP, such as http://collector:4318/v1/traces; absent: no traces")
    sample_fraction: float = Field(1.0, ge=0, le=1, description="Of calls whose client does not decide it")


class LogSettings(Section):
    """Log lines of every process."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["console", "json"] = "console"


class RaySettings(Section):
    """The Ray cluster to run on."""

    address: str = Field("local", description='"local" starts one in the command itself; or an address, or "auto"')
    dashboard_port: int = Field(8265, ge=1, le=65535)
    object_store_bytes: int = Field(80_000_000, ge=78_643_200)
