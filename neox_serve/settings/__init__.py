"""One settings tree, from YAML and environment. The only place that reads the environment.

`load(path)` merges, last wins: the defaults below, the YAML file, variables `NEOX_SERVE_<SECTION>__<KEY>` (for example
`NEOX_SERVE_GATEWAY__PORT=50052`). Unknown keys and bad values raise SettingsError, which names key, value and what is allowed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import platformdirs
import yaml
from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from neox_serve.core.types import Pool
from neox_serve.settings.cluster import (
    AccessSettings,
    BatchSettings,
    ClientSettings,
    GatewaySettings,
    LimitSettings,
    LinkSettings,
    LogSettings,
    MetricsSettings,
    RaySettings,
    RouterSettings,
    ScalingSettings,
    TracingSettings,
)
from neox_serve.settings.engines import EmbeddingSettings, GenerationSettings, ModelSettings
from neox_serve.settings.sections import Section


class SettingsError(ValueError):
    """Settings that cannot be used. The message has a line for each bad key: key, value, what is allowed."""


class Settings(Section):
    """Everything that can be set."""

    model: ModelSettings = ModelSettings()
    generation: GenerationSettings = GenerationSettings()
    embedding: EmbeddingSettings = EmbeddingSettings()
    limits: LimitSettings = LimitSettings()
    gateway: GatewaySettings = GatewaySettings()
    access: AccessSettings = AccessSettings()
    router: RouterSettings = RouterSettings()
    scaling: ScalingSettings = ScalingSettings()
    batch: BatchSettings = BatchSettings()
    links: LinkSettings = LinkSettings()
    metrics: MetricsSettings = MetricsSettings()
    client: ClientSettings = ClientSettings()
    tracing: TracingSettings = TracingSettings()
    log: LogSettings = LogSettings()
    ray: RaySettings = RaySettings()
    state_folder: Path = Field(
        default_factory=lambda: platformdirs.user_state_path("neox-serve"),
        description="What outlives a cluster: what `up` runs, its database and secret unless they are elsewhere, notes of batch jobs",
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
    """Where tenants and usage are kept. Raises SettingsError where the file that holds it cannot be read."""
    if (path := settings.access.database_url_file) is not None:
        try:
            return path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"access.database_url_file: cannot read {path}: {error}") from error
    return settings.access.database_url or f"sqlite:///{settings.state_folder / 'neox-serve.db'}"


def check_shared_by_nodes(settings: Settings) -> None:
    """Raises SettingsError where tenants would be kept on each node apart, though gateways of several nodes are to know the same ones."""
    access = settings.access
    if access.database_url_file is None and (access.database_url is None or access.database_url.startswith("sqlite")):
        kept = access.database_url or "the default, SQLite in the state folder"
        raise SettingsError(
            f"access.database_url: {kept} is a file of one node, and gateways run on several; name a PostgreSQL database there, "
            "or in a file with access.database_url_file"
        )
    if access.secret_file is None:
        raise SettingsError(
            "access.secret_file: each node would make one of its own, and gateways run on several; name a file that is the same on all"
        )


def secret_file(settings: Settings) -> Path:
    """Where the platform's secret is."""
    return settings.access.secret_file or settings.state_folder / "secret"


def dialled(host: str, port: int) -> str:
    """host:port as a client on this machine dials a server that listens on it."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared with, not bound to
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def batch_folder(settings: Settings) -> str:
    """Where the folders of tenants with their jobs' files are."""
    return settings.batch.folder or str(settings.state_folder / "batch")


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
