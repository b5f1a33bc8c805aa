"""Address and TLS of the internal links, from the settings."""

from ipaddress import ip_address

import ray

from neox_serve.link.channels import LinkTls
from neox_serve.settings.cluster import LinkSettings


def link_host(configured: str) -> str:
    """Returns the address to listen on: the configured one, or this node's own address if an unspecified address is configured."""
    return ray.util.get_node_ip_address() if ip_address(configured).is_unspecified else configured


def link_tls(settings: LinkSettings) -> LinkTls | None:
    """Returns the TLS files; None for plain text."""
    if settings.certificate is None or settings.key is None or settings.ca is None:
        return None
    return LinkTls(settings.certificate, settings.key, settings.ca, settings.server_name)
