"""The internal links' TLS, from the settings."""

from neox_serve.link.channels import LinkTls
from neox_serve.settings import LinkSettings


def link_tls(settings: LinkSettings) -> LinkTls | None:
    """None for plain text."""
    if settings.certificate is None or settings.key is None or settings.ca is None:
        return None
    return LinkTls(settings.certificate, settings.key, settings.ca, settings.server_name)
