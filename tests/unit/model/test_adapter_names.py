from neox_serve.core.tenancy.tenants import Tenant
from neox_serve.model.adapter_names import owner_of, registered_name, usable_adapters

CONFIGURED = ("poems",)
REGISTERED = ("code", "acme/chat", "other/chat")


def test_adapter_of_a_tenant_has_its_name_as_prefix() -> None:
    assert registered_name("acme", "chat", for_all=False) == "acme/chat"
    assert registered_name("acme", "chat", for_all=True) == "chat"
    assert (owner_of("acme/chat"), owner_of("chat")) == ("acme", "")


def test_tenant_without_a_list_may_use_its_own_and_shared_adapters() -> None:
    assert usable_adapters(Tenant("acme"), CONFIGURED, REGISTERED) == ("poems", "code", "acme/chat")


def test_tenant_with_a_list_may_use_listed_adapters_and_its_own() -> None:
    tenant = Tenant("acme", adapters=frozenset({"code", "other/chat"}))
    assert usable_adapters(tenant, CONFIGURED, REGISTERED) == ("code", "acme/chat", "other/chat")


def test_tenant_with_an_empty_list_may_use_only_its_own() -> None:
    assert usable_adapters(Tenant("acme", adapters=frozenset()), CONFIGURED, REGISTERED) == ("acme/chat",)
