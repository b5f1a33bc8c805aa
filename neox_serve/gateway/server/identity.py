"""Who calls: from the call's metadata, and from the certificate that its connection has shown."""

from collections.abc import Callable
from typing import Protocol

from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.tenancy import api_keys
from neox_serve.core.tenancy.tenant_directory import Principal, TenantDirectory, anonymous
from neox_serve.core.tenancy.tenants import ANONYMOUS, Tenant
from neox_serve.gateway.server.calls import Context
from neox_serve.gateway.server.jwt_tokens import JwtVerifier

_HEADER = "authorization"
_SCHEME = "bearer "
HOW = "send metadata `authorization: Bearer <API key or token>`, or show a client certificate"


class CurrentDirectory(Protocol):
    """Tenants as they are known now."""

    @property
    def current(self) -> TenantDirectory:
        """The newest snapshot."""


class Identity:
    """Finds out who calls. anonymous_allowed: whether callers without credentials are let in. clock: seconds since the epoch."""

    def __init__(
        self, *, anonymous_allowed: bool, directory: CurrentDirectory | None, tokens: JwtVerifier | None, clock: Callable[[], float]
    ) -> None:
        self._anonymous_allowed = anonymous_allowed
        self._directory = directory
        self._tokens = tokens
        self._clock = clock
        self._nobody = anonymous(Tenant(ANONYMOUS))

    def identify(self, context: Context) -> Principal:
        """The caller. A credential that is shown must be good, even where none is needed. Raises UNAUTHENTICATED."""
        shown = [value for key, value in context.invocation_metadata() if key == _HEADER]
        if shown:
            return self._by_header(shown)
        if (
            (names := context.certificate_names())
            and self._directory
            and (known := self._directory.current.authenticate_certificate(names))
        ):
            return known
        if self._anonymous_allowed:
            return self._anonymous()
        raise ServeError(Reason.UNAUTHENTICATED, f"no credential, or a certificate that stands for no tenant; {HOW}")

    def is_still_valid(self, principal: Principal) -> bool:
        """Whether a caller that was let in would be let in now."""
        if self._directory is None or principal is self._nobody:
            return True
        return principal.credential == self._nobody.credential or self._directory.current.is_still_valid(principal, self._clock())

    def _by_header(self, values: list[str | bytes]) -> Principal:
        value = values[0]
        if len(values) > 1 or not isinstance(value, str) or value[: len(_SCHEME)].lower() != _SCHEME:
            raise ServeError(Reason.UNAUTHENTICATED, f"the credential cannot be read; {HOW}")
        credential = value[len(_SCHEME) :].strip()
        directory = self._directory.current if self._directory else TenantDirectory()
        if credential.startswith(f"{api_keys.PREFIX}_") or self._tokens is None:
            return directory.authenticate_key(credential, self._clock())
        tenant, subject = self._tokens.tenant(credential)
        return directory.principal_of(tenant, f"token:{subject}")

    def _anonymous(self) -> Principal:
        """The anonymous tenant as it was set up, or without limits where it was not."""
        known = self._directory.current.tenants.get(ANONYMOUS) if self._directory else None
        return self._nobody if known is None else anonymous(known)
