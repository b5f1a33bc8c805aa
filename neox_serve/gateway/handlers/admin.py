"""AdminService: tenants, keys and usage in the database. `neox-serve tenant --database` uses the same object without a gateway."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from google.protobuf.message import Message

from neox_serve.core.errors import invalid
from neox_serve.core.tenancy.tenant_directory import TenantDirectory
from neox_serve.gateway.server.calls import Call
from neox_serve.tenancy.tenant_store import TenantStore, unknown_tenant
from neox_serve.tenancy.usage_store import UsageStore
from neox_serve.v1 import admin_service_pb2 as pb
from neox_serve.wire import admin_messages as wire

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)

_MAX_LABEL_CHARACTERS = 128
_DAY_US = 86_400_000_000


class AdminBackend:
    """Implements the service. Every method blocks on the database, takes the actor for the audit log, and raises ServeError."""

    def __init__(self, tenants: TenantStore, usage: UsageStore, secret: bytes) -> None:
        """`secret` is the key of the usage records' hash chains."""
        self._tenants = tenants
        self._usage = usage
        self._secret = secret

    def create_tenant(self, message: pb.CreateTenantRequest, actor: str) -> pb.CreateTenantResponse:
        """Creates a tenant."""
        self._tenants.add(wire.tenant_from_proto(message.tenant), actor, tuple(message.tenant.certificate_names))
        return pb.CreateTenantResponse(tenant=self._tenant(message.tenant.name))

    def get_tenant(self, message: pb.GetTenantRequest, _actor: str) -> pb.GetTenantResponse:
        """Returns a tenant."""
        return pb.GetTenantResponse(tenant=self._tenant(message.name))

    def list_tenants(self, message: pb.ListTenantsRequest, _actor: str) -> pb.ListTenantsResponse:
        """Returns a page of tenants. The page token is the last name of the previous page."""
        directory, size = self._tenants.directory(), wire.page_size(message.page_size)
        names = [name for name in sorted(directory.tenants) if name > message.page_token]
        page = [_shown(directory, name) for name in names[:size]]
        return pb.ListTenantsResponse(tenants=page, next_page_token=names[size - 1] if len(names) > size else "")

    def update_tenant(self, message: pb.UpdateTenantRequest, actor: str) -> pb.UpdateTenantResponse:
        """Replaces all fields of a tenant."""
        self._tenants.change(wire.tenant_from_proto(message.tenant), actor, tuple(message.tenant.certificate_names))
        return pb.UpdateTenantResponse(tenant=self._tenant(message.tenant.name))

    def create_key(self, message: pb.CreateKeyRequest, actor: str) -> pb.CreateKeyResponse:
        """Creates another API key."""
        if len(message.label) > _MAX_LABEL_CHARACTERS:
            raise invalid("label", f"got {len(message.label)} characters, must have at most {_MAX_LABEL_CHARACTERS}")
        made, key = self._tenants.add_key(message.tenant, actor, label=message.label, lifetime_s=_lifetime_s(message))
        return pb.CreateKeyResponse(key=wire.key_to_proto(key), secret=made.text)

    def rotate_key(self, message: pb.RotateKeyRequest, actor: str) -> pb.RotateKeyResponse:
        """Creates an API key and revokes the others after the overlap."""
        overlap_s = wire.seconds(message.overlap, "overlap")
        made, key = self._tenants.rotate_keys(message.tenant, actor, overlap_s=overlap_s, lifetime_s=_lifetime_s(message))
        return pb.RotateKeyResponse(key=wire.key_to_proto(key), secret=made.text)

    def revoke_key(self, message: pb.RevokeKeyRequest, actor: str) -> pb.RevokeKeyResponse:
        """Revokes an API key."""
        self._tenants.revoke_key(message.key_id, actor)
        return pb.RevokeKeyResponse()

    def list_keys(self, message: pb.ListKeysRequest, _actor: str) -> pb.ListKeysResponse:
        """Returns all keys of a tenant."""
        directory = self._tenants.directory()
        if message.tenant not in directory.tenants:
            raise unknown_tenant(message.tenant)
        return pb.ListKeysResponse(keys=[wire.key_to_proto(key) for key in directory.keys.values() if key.tenant == message.tenant])

    def get_usage(self, message: pb.GetUsageRequest, _actor: str) -> pb.GetUsageResponse:
        """Returns usage sums of a period."""
        since_us = wire.microseconds(message.start_time) if message.HasField("start_time") else _today_us()
        until_us = wire.microseconds(message.end_time) if message.HasField("end_time") else time.time_ns() // 1_000 + 1
        if since_us > until_us:
            raise invalid("end_time", "is before start_time")
        sums = self._usage.sums(since_us, until_us, message.tenant or None)
        return pb.GetUsageResponse(
            sums=[pb.UsageSum(**{name: getattr(one, name) for name in one.__slots__}) for one in sums],
        )

    def verify_usage(self, _message: pb.VerifyUsageRequest, _actor: str) -> pb.VerifyUsageResponse:
        """Checks the hash chains of all usage records."""
        records, prompt_tokens, completion_tokens = self._usage.totals()
        breaks = [pb.UsageBreak(chain=one.chain, sequence=one.sequence, what=one.what) for one in self._usage.verify(self._secret)]
        replicas = [
            pb.ReplicaUsage(replica_id=replica_id, requests=requests, prompt_tokens=prompts, completion_tokens=completions)
            for replica_id, requests, prompts, completions in self._usage.by_replica(time.time_ns() // 1_000 - _DAY_US)
        ]
        return pb.VerifyUsageResponse(
            records=records, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, breaks=breaks, replicas=replicas
        )

    def list_audit_entries(self, message: pb.ListAuditEntriesRequest, _actor: str) -> pb.ListAuditEntriesResponse:
        """Returns the newest entries of the audit log."""
        entries = self._tenants.audit(wire.page_size(message.page_size))
        shown = [wire.audit_to_proto(one.at_s, one.actor, one.action, one.subject, one.details) for one in entries]
        return pb.ListAuditEntriesResponse(entries=shown)

    def _tenant(self, name: str) -> pb.Tenant:
        directory = self._tenants.directory()
        if name not in directory.tenants:
            raise unknown_tenant(name)
        return _shown(directory, name)


def in_thread(
    method: Callable[[RequestT, str], ResponseT], changed: Callable[[], Awaitable[None]]
) -> Callable[[Call, RequestT], Awaitable[ResponseT]]:
    """Returns a handler that runs the method in a thread, then awaits `changed` so that this gateway sees the change at once."""

    async def handle(call: Call, message: RequestT) -> ResponseT:
        response = await asyncio.to_thread(method, message, call.principal.actor)
        await changed()
        return response

    return handle


def _shown(directory: TenantDirectory, name: str) -> pb.Tenant:
    return wire.tenant_to_proto(directory.tenants[name], [one for one, owner in directory.certificates.items() if owner == name])


def _lifetime_s(message: Any) -> float | None:
    if not message.HasField("lifetime"):
        return None
    return wire.seconds(message.lifetime, "lifetime")


def _today_us() -> int:
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return (today - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1)
