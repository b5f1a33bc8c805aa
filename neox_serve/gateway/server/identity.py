"""Authentication of callers, by the metadata of the call or by the client certificate of its connection."""

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
HOW_TO_AUTHENTICATE = "send metadata `authorization: Bearer <API key or token>`, or present a client certificate"
"""Advice in error messages."""


class CurrentDirectory(Protocol):
    """Source of the current tenants."""

    @property
    def current(self) -> TenantDirectory:
        """The newest snapshot."""


class Identity:
    """Authenticates callers."""

    def __init__(
        self, *, anonymous_allowed: bool, directory: CurrentDirectory | None, tokens: JwtVerifier | None, clock: Callable[[], float]
    ) -> None:
        """`anonymous_allowed` accepts callers without credentials; `clock` returns seconds since the epoch."""
        self._anonymous_allowed = anonymous_allowed
        self._directory = directory
        self._tokens = tokens
        self._clock = clock
        self._anonymous_principal = anonymous(Tenant(ANONYMOUS))

    def identify(self, context: Context) -> Principal:
        """Returns the caller. A credential must be valid even if none is required. Raises UNAUTHENTICATED."""
        credentials = [value for key, value in context.invocation_metadata() if key == _HEADER]
        if credentials:
            return self._by_header(credentials)
        if (
            (names := context.certificate_names())
            and self._directory
            and (known := self._directory.current.authenticate_certificate(names))
        ):
            return known
        if self._anonymous_allowed:
            return self._anonymous()
        raise ServeError(Reason.UNAUTHENTICATED, f"no credential, nor a certificate of a tenant; {HOW_TO_AUTHENTICATE}")

    def is_still_valid(self, principal: Principal) -> bool:
        """Returns whether a caller that was authenticated before would be authenticated now."""
        if self._directory is None or principal is self._anonymous_principal:
            return True
        if principal.credential == self._anonymous_principal.credential:
            return True
        return self._directory.current.is_still_valid(principal, self._clock())

    def _by_header(self, values: list[str | bytes]) -> Principal:
        value = values[0]
        if len(values) > 1 or not isinstance(value, str) or value[: len(_SCHEME)].lower() != _SCHEME:
            raise ServeError(Reason.UNAUTHENTICATED, f"the authorization metadata is malformed; {HOW_TO_AUTHENTICATE}")
        credential = value[len(_SCHEME) :].strip()
        directory = self._directory.current if self._directory else TenantDirectory()
        if credential.startswith(f"{api_keys.PREFIX}_") or self._tokens is None:
            return directory.authenticate_key(credential, self._clock())
        tenant, subject = self._tokens.tenant(credential)
        return directory.principal_of(tenant, f"token:{subject}")

    def _anonymous(self) -> Principal:
        """Returns the anonymous tenant from the database, or one without limits if the database has none."""
        known = self._directory.current.tenants.get(ANONYMOUS) if self._directory else None
        return self._anonymous_principal if known is None else anonymous(known)
