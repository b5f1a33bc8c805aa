"""The lease book and its sums."""

from neox_serve.core.cluster import Lease, Outstanding
from neox_serve.core.scheduling.leases import LeaseBook


def test_removing_a_lease_twice_counts_once() -> None:
    book = LeaseBook()
    book.add("g", Lease(1, "r", 100))
    assert book.remove("g", 1) == Lease(1, "r", 100)
    assert book.remove("g", 1) is None
    assert book.outstanding("r") == Outstanding()


def test_adding_a_lease_with_a_known_id_replaces_it() -> None:
    book = LeaseBook()
    book.add("g", Lease(1, "r", 100))
    book.add("g", Lease(1, "s", 50))
    assert (book.outstanding("r"), book.outstanding("s")) == (Outstanding(), Outstanding(1, 50))


def test_equal_ids_of_two_gateways_are_two_leases() -> None:
    book = LeaseBook()
    book.add("g", Lease(1, "r", 100))
    book.add("h", Lease(1, "r", 50))
    book.drop_gateway("g")
    assert book.outstanding("r") == Outstanding(1, 50)
    assert (book.requests("g"), book.requests("h"), len(book)) == (0, 1, 1)


def test_dropping_a_replica_keeps_the_leases_on_others() -> None:
    book = LeaseBook()
    book.replace("g", [Lease(1, "r", 100), Lease(2, "s", 50), Lease(3, "r", 1)])
    book.drop_replica("r")
    assert book.leases("g") == (Lease(2, "s", 50),)
    assert book.outstanding("r") == Outstanding()


def test_replacing_leases_by_equal_ones_reports_no_change() -> None:
    changes: list[tuple[str, Outstanding]] = []
    book = LeaseBook(lambda *change: changes.append(change))
    leases = [Lease(1, "r", 100), Lease(2, "r", 50)]
    book.replace("g", leases)
    book.replace("g", leases)
    assert changes == [("r", Outstanding(2, 150))]
    assert book.leases("g") == tuple(leases)


def test_dropping_a_gateway_reports_each_replica_once() -> None:
    changes: list[tuple[str, Outstanding]] = []
    book = LeaseBook(lambda *change: changes.append(change))
    book.replace("g", [Lease(number, "rs"[number % 2], 10) for number in range(10)])
    changes.clear()
    book.drop_gateway("g")
    assert sorted(changes, key=str) == [("r", Outstanding()), ("s", Outstanding())]


def test_lease_replaced_by_one_on_another_replica_reports_both() -> None:
    changes: list[tuple[str, Outstanding]] = []
    book = LeaseBook(lambda *change: changes.append(change))
    book.add("g", Lease(1, "r", 100))
    book.add("g", Lease(1, "s", 50))
    assert changes == [("r", Outstanding(1, 100)), ("r", Outstanding()), ("s", Outstanding(1, 50))]


def test_cached_tokens_stay_with_the_lease_and_do_not_count_on_the_replica() -> None:
    book = LeaseBook()
    leases = [Lease(1, "r", 100, cached_tokens=60), Lease(2, "r", 50)]
    book.replace("g", leases)
    assert (book.outstanding("r"), book.leases("g")) == (Outstanding(2, 90), tuple(leases))
    assert book.remove("g", 1) == leases[0]
    assert book.outstanding("r") == Outstanding(1, 50)
    book.add("g", Lease(1, "r", 100))
    assert book.outstanding("r") == Outstanding(2, 150)
