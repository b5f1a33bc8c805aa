"""The arithmetic of leases."""

from neox_serve.core.cluster import Lease, Outstanding
from neox_serve.core.scheduling.leases import LeaseBook


def test_remove_twice_counts_once() -> None:
    book = LeaseBook()
    book.add("g", Lease(1, "r", 100))
    assert book.remove("g", 1) == Lease(1, "r", 100)
    assert book.remove("g", 1) is None
    assert book.outstanding("r") == Outstanding()


def test_add_with_a_known_id_replaces_the_lease() -> None:
    book = LeaseBook()
    book.add("g", Lease(1, "r", 100))
    book.add("g", Lease(1, "s", 50))
    assert (book.outstanding("r"), book.outstanding("s")) == (Outstanding(), Outstanding(1, 50))


def test_same_id_of_two_gateways_is_two_leases() -> None:
    book = LeaseBook()
    book.add("g", Lease(1, "r", 100))
    book.add("h", Lease(1, "r", 50))
    book.drop_gateway("g")
    assert book.outstanding("r") == Outstanding(1, 50)
    assert (book.requests("g"), book.requests("h"), len(book)) == (0, 1, 1)


def test_drop_replica_leaves_the_leases_on_others() -> None:
    book = LeaseBook()
    book.replace("g", [Lease(1, "r", 100), Lease(2, "s", 50), Lease(3, "r", 1)])
    book.drop_replica("r")
    assert book.leases("g") == (Lease(2, "s", 50),)
    assert book.outstanding("r") == Outstanding()


def test_replace_with_what_is_known_already_changes_and_tells_nothing() -> None:
    told: list[tuple[str, Outstanding]] = []
    book = LeaseBook(lambda *change: told.append(change))
    leases = [Lease(1, "r", 100), Lease(2, "r", 50)]
    book.replace("g", leases)
    book.replace("g", leases)
    assert told == [("r", Outstanding(2, 150))]
    assert book.leases("g") == tuple(leases)


def test_drop_gateway_tells_each_replica_once() -> None:
    told: list[tuple[str, Outstanding]] = []
    book = LeaseBook(lambda *change: told.append(change))
    book.replace("g", [Lease(number, "rs"[number % 2], 10) for number in range(10)])
    told.clear()
    book.drop_gateway("g")
    assert sorted(told, key=str) == [("r", Outstanding()), ("s", Outstanding())]


def test_replaced_lease_on_another_replica_tells_both() -> None:
    told: list[tuple[str, Outstanding]] = []
    book = LeaseBook(lambda *change: told.append(change))
    book.add("g", Lease(1, "r", 100))
    book.add("g", Lease(1, "s", 50))
    assert told == [("r", Outstanding(1, 100)), ("r", Outstanding()), ("s", Outstanding(1, 50))]


def test_cached_tokens_do_not_count_on_the_replica_but_stay_with_the_lease() -> None:
    book = LeaseBook()
    leases = [Lease(1, "r", 100, cached_tokens=60), Lease(2, "r", 50)]
    book.replace("g", leases)
    assert (book.outstanding("r"), book.leases("g")) == (Outstanding(2, 90), tuple(leases))
    assert book.remove("g", 1) == leases[0]
    assert book.outstanding("r") == Outstanding(1, 50)
    book.add("g", Lease(1, "r", 100))
    assert book.outstanding("r") == Outstanding(2, 150)
