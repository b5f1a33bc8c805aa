"""The internal links' TLS, from the settings."""

from ipaddress import ip_address

import ray

from neox_serve.link.channels import LinkTls
from neox_serve.settings.cluster import LinkSettings


def link_host(configured: str) -> str:
    """The interface of the internal links: as configured, or this node's address where all interfaces are."""
    return ray.util.get_node_ip_address() if ip_address(configured).is_unspecified else configured


def link_tls(settings: LinkSettings) -> LinkTls | None:
    """None for plain text."""
    if settings.certificate is None or settings.key is None or settings.ca is None:
        return None
    return LinkTls(settings.certificate, settings.key, settings.ca, settings.server_name)
