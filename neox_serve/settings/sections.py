"""What all sections of the settings have in common."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A section: no unknown keys, and nothing changes once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def node_resource() -> Any:
    """The key that keeps a part of the cluster to certain nodes."""
    return Field(None, min_length=1, description="Custom Ray resource of the nodes that may hold it, which takes 1 of it; absent: any node")
