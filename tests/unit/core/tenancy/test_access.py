"""The access table is complete and denies everything else."""

import pytest

from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.tenancy.access import ROLES, check_role
from neox_serve.core.tenancy.tenants import Role
from neox_serve.v1 import admin_service_pb2, batch_service_pb2, inference_service_pb2, model_service_pb2, ops_service_pb2, token_service_pb2

FILES = (admin_service_pb2, batch_service_pb2, inference_service_pb2, model_service_pb2, ops_service_pb2, token_service_pb2)


def test_every_method_of_the_public_api_is_in_the_table_and_nothing_else() -> None:
    services = [service for file in FILES for service in file.DESCRIPTOR.services_by_name.values()]
    assert set(ROLES) == {f"/{service.full_name}/{method.name}" for service in services for method in service.methods}


def test_method_not_in_the_table_is_denied_to_everyone() -> None:
    with pytest.raises(ServeError) as caught:
        check_role("/neox_serve.v1.InferenceService/New", frozenset(Role))
    assert caught.value.reason is Reason.PERMISSION_DENIED


@pytest.mark.parametrize("method", [method for method in ROLES if "Admin" in method])
def test_admin_methods_are_only_for_admins(method: str) -> None:
    check_role(method, frozenset({Role.ADMIN}))
    for role in (Role.TENANT, Role.OPERATOR):
        with pytest.raises(ServeError):
            check_role(method, frozenset({role}))


def test_admins_and_operators_do_not_run_the_model() -> None:
    for role in (Role.ADMIN, Role.OPERATOR):
        with pytest.raises(ServeError):
            check_role("/neox_serve.v1.InferenceService/Generate", frozenset({role}))
