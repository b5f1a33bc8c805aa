"""Settings: their definition, reading them from YAML and the environment, and the slices that processes get.

`load(path)` merges the defaults, the YAML file and variables `NEOX_SERVE_<SECTION>__<KEY>` (for example NEOX_SERVE_GATEWAY__PORT=50052);
later sources take precedence. Unknown keys and invalid values raise SettingsError. The package may import only neox_serve.core. Start
reading in tree.py, which lists the sections, then loading.py and slices.py.
"""

from neox_serve.settings.derived import (
    AccessSource,
    allows_anonymous,
    batch_folder,
    check_shared_by_nodes,
    connect_address,
    database_url,
    pool_settings,
    secret_file,
)
from neox_serve.settings.loading import SettingsError, load, parse, restore
from neox_serve.settings.tree import Settings

__all__ = [
    "AccessSource",
    "Settings",
    "SettingsError",
    "allows_anonymous",
    "batch_folder",
    "check_shared_by_nodes",
    "connect_address",
    "database_url",
    "load",
    "parse",
    "pool_settings",
    "restore",
    "secret_file",
]
