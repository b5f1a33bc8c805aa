"""Which roles may call which method. A method that is not in the table may not be called at all."""

from collections.abc import Mapping

from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.tenancy.tenants import Role

_ANYONE = frozenset(Role)
_INFERENCE, _TOKENS, _MODELS, _ADMIN, _OPS, _BATCH = (
    f"/neox_serve.v1.{name}Service" for name in ("Inference", "Token", "Model", "Admin", "Ops", "Batch")
)

ROLES: Mapping[str, frozenset[Role]] = {
    f"{_INFERENCE}/Generate": frozenset({Role.TENANT}),
    f"{_INFERENCE}/StreamGenerate": frozenset({Role.TENANT}),
    f"{_INFERENCE}/Embed": frozenset({Role.TENANT}),
    f"{_INFERENCE}/Score": frozenset({Role.TENANT}),
    f"{_INFERENCE}/Estimate": frozenset({Role.TENANT}),
    f"{_TOKENS}/Tokenize": frozenset({Role.TENANT}),
    f"{_TOKENS}/Detokenize": frozenset({Role.TENANT}),
    f"{_MODELS}/ListModels": _ANYONE,
    f"{_MODELS}/GetModel": _ANYONE,
    f"{_ADMIN}/CreateTenant": frozenset({Role.ADMIN}),
    f"{_ADMIN}/GetTenant": frozenset({Role.ADMIN}),
    f"{_ADMIN}/ListTenants": frozenset({Role.ADMIN}),
    f"{_ADMIN}/UpdateTenant": frozenset({Role.ADMIN}),
    f"{_ADMIN}/CreateKey": frozenset({Role.ADMIN}),
    f"{_ADMIN}/RotateKey": frozenset({Role.ADMIN}),
    f"{_ADMIN}/RevokeKey": frozenset({Role.ADMIN}),
    f"{_ADMIN}/ListKeys": frozenset({Role.ADMIN}),
    f"{_ADMIN}/GetUsage": frozenset({Role.ADMIN}),
    f"{_ADMIN}/VerifyUsage": frozenset({Role.ADMIN}),
    f"{_ADMIN}/ListAuditEntries": frozenset({Role.ADMIN}),
    f"{_OPS}/GetClusterStatus": frozenset({Role.OPERATOR, Role.ADMIN}),
    f"{_OPS}/DrainReplica": frozenset({Role.OPERATOR}),
    f"{_BATCH}/CreateJob": frozenset({Role.TENANT}),
    f"{_BATCH}/GetJob": frozenset({Role.TENANT}),
    f"{_BATCH}/ListJobs": frozenset({Role.TENANT}),
    f"{_BATCH}/ReadJobLog": frozenset({Role.TENANT}),
    f"{_BATCH}/CancelJob": frozenset({Role.TENANT}),
    f"{_BATCH}/WatchJob": frozenset({Role.TENANT}),
}
"""Full method path to the roles that may call it.

Health and reflection are not listed: they are open to all, because load balancers and tools call them without credentials.
"""


def check_role(method: str, roles: frozenset[Role]) -> None:
    """Raises PERMISSION_DENIED unless one of the roles may call the method."""
    if not roles & ROLES.get(method, frozenset()):
        held = ", ".join(sorted(roles)) or "none"
        raise ServeError(Reason.PERMISSION_DENIED, f"{method} may not be called with the role {held}", {"method": method})
