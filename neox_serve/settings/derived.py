"""Values that follow from settings, with the defaults that depend on other settings."""

from ipaddress import ip_address
from pathlib import Path
from typing import Protocol

from neox_serve.core.types import Pool
from neox_serve.settings.cluster import BatchSettings
from neox_serve.settings.engines import EmbeddingSettings, GenerationSettings
from neox_serve.settings.gateway import AccessSettings, GatewaySettings
from neox_serve.settings.loading import SettingsError
from neox_serve.settings.tree import Settings


class AccessSource(Protocol):
    """Settings, or a slice that has the same fields."""

    @property
    def access(self) -> AccessSettings:
        """The section `access`."""

    @property
    def state_folder(self) -> Path:
        """The state folder of the cluster."""


class BatchSource(Protocol):
    """Settings, or a slice that has the same fields."""

    @property
    def batch(self) -> BatchSettings:
        """The section `batch`."""

    @property
    def state_folder(self) -> Path:
        """The state folder of the cluster."""


def pool_settings(settings: Settings, pool: Pool) -> GenerationSettings | EmbeddingSettings:
    """Returns the section of a pool."""
    return settings.generation if pool is Pool.GENERATION else settings.embedding


def allows_anonymous(access: AccessSettings, gateway: GatewaySettings) -> bool:
    """Returns whether gateways accept callers without credentials."""
    if access.allow_anonymous is not None:
        return access.allow_anonymous
    return gateway.host == "localhost" or (_is_address(gateway.host) and ip_address(gateway.host).is_loopback)


def database_url(settings: AccessSource) -> str:
    """Returns the SQLAlchemy URL of the database. Raises SettingsError if access.database_url_file cannot be read."""
    if (path := settings.access.database_url_file) is not None:
        try:
            return path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"access.database_url_file: cannot read {path}: {error}") from error
    return settings.access.database_url or f"sqlite:///{settings.state_folder / 'neox-serve.db'}"


def secret_file(settings: AccessSource) -> Path:
    """Returns the path of the file with the platform's secret."""
    return settings.access.secret_file or settings.state_folder / "secret"


def check_shared_by_nodes(settings: Settings) -> None:
    """Raises SettingsError if the database or the secret is local to a node, so that gateways on several nodes would not share it."""
    access = settings.access
    if access.database_url_file is None and (access.database_url is None or access.database_url.startswith("sqlite")):
        url = access.database_url or "the default, SQLite in the state folder"
        raise SettingsError(
            f"access.database_url: {url} is a file on one node, but gateways run on several nodes; set it to the URL of a PostgreSQL "
            "database, or set access.database_url_file to a file with that URL"
        )
    if access.secret_file is None:
        raise SettingsError(
            "access.secret_file: must be set because gateways run on several nodes and each node would generate a different secret; set it "
            "to a file that has the same content on all nodes"
        )


def connect_address(host: str, port: int) -> str:
    """Returns the host:port under which a client on this machine reaches a server that listens on `host`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared with, not bound to
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def batch_folder(settings: BatchSource) -> str:
    """Returns the folder of the jobs' files, which has one subfolder per tenant."""
    return settings.batch.folder or str(settings.state_folder / "batch")


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
