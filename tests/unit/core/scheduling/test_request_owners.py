"""Ownership of requests by gateways."""

from neox_serve.core.scheduling.request_owners import RequestOwners


def test_first_gateway_owns_a_request_until_its_response_expires() -> None:
    owners = RequestOwners(memory_s=60.0)
    assert owners.claim("k", "a", 1, takes_over=False) is None
    assert owners.claim("k", "a", 2, takes_over=False) is None
    assert owners.claim("k", "b", 1, takes_over=False) == "a"
    owners.settle("a", 1, 10.0)
    owners.expire(69.9)
    assert owners.claim("k", "b", 2, takes_over=False) == "a"
    owners.expire(70.0)
    assert owners.claim("k", "b", 3, takes_over=False) is None


def test_lost_gateway_owns_nothing() -> None:
    owners = RequestOwners(60.0)
    owners.claim("k", "a", 1, takes_over=False)
    owners.drop_gateway("a")
    assert owners.claim("k", "b", 1, takes_over=False) is None
    assert len(owners) == 1


def test_request_unknown_to_its_owner_is_taken_over() -> None:
    owners = RequestOwners(60.0)
    owners.claim("k", "a", 1, takes_over=False)
    assert owners.claim("k", "b", 1, takes_over=True) is None
    assert owners.claim("k", "a", 2, takes_over=False) == "b"
    owners.settle("a", 1, 0.0)
    owners.expire(100.0)
    assert owners.claim("k", "a", 3, takes_over=False) == "b", "the old owner's end is not the new one's"
