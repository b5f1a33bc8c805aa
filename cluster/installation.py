"""What the commands that need only a gateway can do in an installation of the whole server."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.commands.settings import effective
from neox_serve.cli.errors import CommandError
from neox_serve.cli.installation import AdminCall, ClientInstallation, ConnectionDefaults

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from neox_serve.core.jobs.rows import RowsWork


class ServerInstallation(ClientInstallation):
    """Takes defaults from the settings, opens the cluster's database and checks the rows of jobs. Its methods raise SettingsError."""

    def connection_defaults(self, config: Path | None) -> ConnectionDefaults:
        """The gateway's host and port and the client section of the settings."""
        from neox_serve.settings import connect_address

        settings = effective(config)
        key = settings.client.api_key
        return ConnectionDefaults(
            connect_address(settings.gateway.host, settings.gateway.port),
            key.get_secret_value() if key else None,
            settings.client.api_key_file,
        )

    def metrics_url(self, config: Path | None) -> str:
        """The metrics page at the settings' host and port. Raises CommandError if metrics are disabled."""
        from neox_serve.settings import connect_address

        settings = effective(config).metrics
        if not settings.enabled:
            raise CommandError("metrics are disabled (metrics.enabled is false); name another page with --url")
        return f"http://{connect_address(settings.host, settings.port)}/metrics"

    def database_admin(self, config: Path | None) -> AdminCall:
        """Runs AdminService's methods on the settings' database, without a gateway. The audit log names the operating system's user."""
        import getpass
        import re

        from neox_serve.gateway.handlers.admin import AdminBackend
        from neox_serve.settings import database_url, secret_file
        from neox_serve.tenancy.database import open_database
        from neox_serve.tenancy.platform import read_secret
        from neox_serve.tenancy.tenant_store import TenantStore
        from neox_serve.tenancy.usage_store import UsageStore

        settings = effective(config)
        secret = read_secret(secret_file(settings), create=settings.access.secret_file is None)
        database, actor = open_database(database_url(settings)), f"{getpass.getuser()} (database)"
        backend = AdminBackend(TenantStore(database), UsageStore(database), secret)

        def call(request: "Message") -> Any:
            words = re.findall("[A-Z][a-z]+", request.DESCRIPTOR.name.removesuffix("Request"))
            return getattr(backend, "_".join(words).lower())(request, actor)

        return call

    def check_rows(self, kind: str, work: "RowsWork") -> None:
        """Raises CommandError if the input file has rows that the job could not use."""
        from deployments.jobs.bulk.runner import survey
        from deployments.jobs.failures import JobError

        try:
            survey(kind, work)
        except JobError as error:
            raise CommandError(str(error)) from error

    def explain(self, error: Exception) -> str | None:
        """As a client's, and settings that are wrong."""
        if (explanation := super().explain(error)) is not None:
            return explanation
        from neox_serve.settings import SettingsError

        return f"Error in the settings:\n{error}" if isinstance(error, SettingsError) else None
