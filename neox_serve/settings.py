"""One settings tree, from YAML and environment. The only place that reads the environment.

`load(path)` merges, last wins: the defaults below, the YAML file, variables `NEOX_SERVE_<SECTION>__<KEY>` (for example
`NEOX_SERVE_GATEWAY__PORT=50052`). Unknown keys and bad values raise SettingsError, which names key, value and what is allowed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal

import platformdirs
import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from neox_serve.core.routing import DEFAULT_LEAD_TOKENS
from neox_serve.core.types import Pool, Pooling

Name = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
Port = Field(ge=0, le=65535)


def _node_resource() -> Any:
    return Field(None, min_length=1, description="Custom Ray resource of the nodes that may hold it, which takes 1 of it; absent: any node")


class SettingsError(ValueError):
    """Settings that cannot be used. The message has a line for each bad key: key, value, what is allowed."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class AdapterSettings(_Section):
    """A LoRA adapter that requests may name."""

    name: str = Name
    path: str = Field(min_length=1, description="Folder with adapter_config.json: local, a URL of fsspec's such as s3://..., or a hub name")
    pinned: bool = Field(False, description="Loaded at the start and never unloaded for another")


class ModelSettings(_Section):
    """Which checkpoint is served, under which name."""

    name: str = Field("neox-small", min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    source: str = Field("builtin", min_length=1, description='"builtin", a local folder, or a hub name such as EleutherAI/gpt-neox-20b')
    revision: str | None = None
    adapters: tuple[AdapterSettings, ...] = ()

    @model_validator(mode="after")
    def _adapter_names_differ(self) -> "ModelSettings":
        names = [adapter.name for adapter in self.adapters]
        if len(set(names)) != len(names):
            raise ValueError(f"adapters: names must differ, got {names}")
        return self


class FakeEngineSettings(_Section):
    """Timing of the fake engine, which answers without a model."""

    ttft_s: float = Field(0.02, ge=0)
    itl_s: float = Field(0.02, ge=0, description="Seconds between tokens at batch size 1")
    itl_per_request_s: float = Field(0.0, ge=0, description="Added to itl_s for each further request in the batch")
    stamp_text: bool = Field(
        False, description="Each token's text is the moment of its step (CLOCK_MONOTONIC seconds, 6 digits) and a space: to measure latency"
    )


class EngineSettings(_Section):
    """How one engine replica runs the model. Checked against the model and the hardware before anything is loaded (engine/arguments.py)."""

    kind: Literal["vllm", "fake"] = "vllm"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="auto: by hardware")
    tensor_parallel_size: int = Field(1, ge=1, le=64)
    pipeline_parallel_size: int = Field(1, ge=1, le=64)
    executor_backend: Literal["auto", "mp", "ray", "uni"] = Field(
        "auto", description="auto: uni for one worker on CPUs, mp on one node, ray across nodes"
    )
    quantization: str | None = None
    max_model_tokens: int | None = Field(None, ge=8, description="Context; default: the model's positions")
    max_num_seqs: int = Field(128, ge=1, le=4096, description="Most sequences in a batch")
    max_num_batched_tokens: int | None = Field(None, ge=8)
    kv_cache_gib: float = Field(0.5, gt=0, description="KV cache of each CPU worker; on GPUs gpu_memory_utilization rules")
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    block_size: int | None = Field(None, ge=1, le=256)
    enable_prefix_caching: bool = True
    report_prefix_cache: bool = Field(True, description="Tell the router what the prefix cache holds, for router.policy kv-aware")
    enforce_eager: bool | None = Field(None, description="No compilation; default: true on CPU, false on GPU")
    cpu_threads_bind: str = Field(
        "auto", description='OpenMP cores of each CPU worker as vLLM takes them, such as "0|1"; auto: shared out evenly'
    )
    max_loras: int = Field(4, ge=1, le=64, description="Adapters in one batch; on CPU all that are loaded")
    max_loaded_loras: int = Field(8, ge=1, le=1024, description="Adapters kept loaded; the least recently used leaves first")
    max_lora_rank: Literal[8, 16, 32, 64, 128, 256] = 16
    extra_arguments: dict[str, Any] = Field(default_factory=dict, description="Further vLLM engine arguments, as they are")
    fake: FakeEngineSettings = FakeEngineSettings()


class ReplicaSettings(_Section):
    """How many replicas a pool has, and what each takes from the cluster."""

    initial: int = Field(1, ge=0)
    min: int = Field(1, ge=0)
    max: int = Field(1, ge=1)
    max_requests: int = Field(256, ge=1, description="Requests in flight beyond which a replica takes no more")
    num_cpus: float = Field(0.0, ge=0)
    gpus_per_worker: float = Field(0.0, ge=0, description="GPUs each tensor- or pipeline-parallel worker takes; 0: CPU")
    drain_timeout_s: float = Field(120.0, gt=0, description="Longest time a leaving replica works on what it has")
    start_timeout_s: float = Field(1200.0, gt=0)
    node_resource: str | None = _node_resource()

    @model_validator(mode="after")
    def _bounds_are_ordered(self) -> "ReplicaSettings":
        if not self.min <= self.initial <= self.max:
            raise ValueError(f"replicas must satisfy min <= initial <= max, got {self.min}, {self.initial}, {self.max}")
        return self


class GenerationSettings(_Section):
    """The generation pool."""

    engine: EngineSettings = EngineSettings()
    replicas: ReplicaSettings = ReplicaSettings()


class EmbeddingSettings(_Section):
    """The embedding pool."""

    enabled: bool = True
    default_pooling: Pooling = Pooling.MEAN
    engine: EngineSettings = EngineSettings()
    replicas: ReplicaSettings = ReplicaSettings()


class LimitSettings(_Section):
    """The most that one request may ask."""

    prompts_per_request: int = Field(64, ge=1)
    n: int = Field(16, ge=1)
    beam_width: int = Field(8, ge=1)
    logprobs: int = Field(20, ge=0)
    request_bytes: int = Field(1_572_864, ge=1024)
    repeat_memory_s: float = Field(60.0, ge=0, description="How long a gateway gives repeats of a request_id the answer that it gave")
    repeat_memory_bytes: int = Field(67_108_864, ge=0, description="The most that those answers take of a gateway's memory")


class GatewaySettings(_Section):
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
    node_resource: str | None = _node_resource()

    @model_validator(mode="after")
    def _certificate_and_key_come_together(self) -> "GatewaySettings":
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key must be set together")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_client_ca needs tls_certificate and tls_key")
        return self


class JwtSettings(_Section):
    """Tokens of an identity provider (RFC 7519, signed with a key pair) that callers may show as `authorization: Bearer`."""

    jwks: str = Field(min_length=1, description="The provider's public keys as a JWK set: a file, or an https URL")
    issuer: str = Field(min_length=1, description="What `iss` must be")
    audience: str = Field(min_length=1, description="What `aud` must be or contain")
    tenant_claim: str = Field("tenant", min_length=1, description="The claim that holds the tenant's name")
    leeway_s: float = Field(30.0, ge=0, le=300, description="How far the provider's clock may be off")


class AccessSettings(_Section):
    """Who may call, and where that is kept."""

    anonymous: bool | None = Field(
        None,
        description="Callers without credentials are the tenant `anonymous`, with every role; default: where gateway.host is loopback",
    )
    database_url: str | None = Field(
        None, description="SQLAlchemy URL, such as postgresql+psycopg://user@host/name; default: SQLite in the state folder"
    )
    secret_file: Path | None = Field(
        None,
        description="Key of usage chains and cache salts, 32 bytes or more, one for all gateways; default: made in the state folder",
    )
    jwt: JwtSettings | None = None


class RouterSettings(_Section):
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
    lead_tokens: int = Field(
        DEFAULT_LEAD_TOKENS,
        ge=0,
        description="Tokens that a replica may have to do more than the least loaded, until prefix, session and adapter bind nothing to it",
    )
    node_resource: str | None = _node_resource()


class ScalingSettings(_Section):
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


class LinkSettings(_Section):
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


class MetricsSettings(_Section):
    """The scrape page of the whole cluster, served by the router."""

    enabled: bool = True
    host: str = "127.0.0.1"
    port: int = Field(9464, ge=0, le=65535)


class ClientSettings(_Section):
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


class TracingSettings(_Section):
    """OpenTelemetry traces of calls, across gateway, router and replicas."""

    endpoint: str | None = Field(None, description="OTLP over HTTP, such as http://collector:4318/v1/traces; absent: no traces")
    sample_fraction: float = Field(1.0, ge=0, le=1, description="Of calls whose client does not decide it")


class LogSettings(_Section):
    """Log lines of every process."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["console", "json"] = "console"


class RaySettings(_Section):
    """The Ray cluster to run on."""

    address: str = Field("local", description='"local" starts one in the command itself; or an address, or "auto"')
    dashboard_port: int = Field(8265, ge=1, le=65535)
    object_store_bytes: int = Field(80_000_000, ge=78_643_200)


class Settings(_Section):
    """Everything that can be set."""

    model: ModelSettings = ModelSettings()
    generation: GenerationSettings = GenerationSettings()
    embedding: EmbeddingSettings = EmbeddingSettings()
    limits: LimitSettings = LimitSettings()
    gateway: GatewaySettings = GatewaySettings()
    access: AccessSettings = AccessSettings()
    router: RouterSettings = RouterSettings()
    scaling: ScalingSettings = ScalingSettings()
    links: LinkSettings = LinkSettings()
    metrics: MetricsSettings = MetricsSettings()
    client: ClientSettings = ClientSettings()
    tracing: TracingSettings = TracingSettings()
    log: LogSettings = LogSettings()
    ray: RaySettings = RaySettings()
    state_folder: Path = Field(
        default_factory=lambda: platformdirs.user_state_path("neox-serve"),
        description="Where `up` notes what it runs, for `down` and `job`",
    )


class _WithEnvironment(Settings, BaseSettings):
    """Settings whose sources are the arguments and, over them, the environment."""

    model_config = SettingsConfigDict(
        env_prefix="NEOX_SERVE_", env_nested_delimiter="__", extra="forbid", frozen=True, protected_namespaces=()
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over the file, which comes as init arguments."""
        return env_settings, init_settings


def pool_settings(settings: Settings, pool: Pool) -> GenerationSettings | EmbeddingSettings:
    """The section of a pool."""
    return settings.generation if pool is Pool.GENERATION else settings.embedding


def lets_anonymous_in(settings: Settings) -> bool:
    """Whether callers without credentials are let in."""
    if settings.access.anonymous is not None:
        return settings.access.anonymous
    return settings.gateway.host == "localhost" or (_is_address(settings.gateway.host) and ip_address(settings.gateway.host).is_loopback)


def database_url(settings: Settings) -> str:
    """Where tenants and usage are kept."""
    return settings.access.database_url or f"sqlite:///{settings.state_folder / 'neox-serve.db'}"


def secret_file(settings: Settings) -> Path:
    """Where the platform's secret is."""
    return settings.access.secret_file or settings.state_folder / "secret"


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def load(path: Path | None = None) -> Settings:
    """Settings from a YAML file (None: defaults) and the environment. Raises SettingsError."""
    return parse(_read_yaml(path) if path else {})


def parse(values: dict[str, Any]) -> Settings:
    """Settings from plain values (as YAML or JSON gives them) and the environment. Raises SettingsError."""
    with _explained():
        return restore(_WithEnvironment(**values).model_dump())


def restore(values: dict[str, Any]) -> Settings:
    """Settings as another process dumped them; this process's environment plays no part. Raises SettingsError."""
    with _explained():
        return Settings.model_validate(values)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(problem) for problem in error.errors())) from error


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise SettingsError(f"{path}: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError(f"{path}: must be a mapping of sections, got {type(values).__name__}")
    return values


def _explain(problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"]) or "settings"
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key"
    return f"{key}: {problem['msg']} (got {problem['input']!r})"
