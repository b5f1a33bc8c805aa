"""The base class of every section of the settings."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A group of settings. Unknown keys are rejected, and values cannot change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def node_resource() -> Any:
    """Returns the field that restricts a part of the cluster to certain nodes."""
    return Field(
        None,
        min_length=1,
        description="Custom Ray resource that a node must offer to run this part; each process reserves one unit of it. "
        "Unset: any node may run it.",
    )
