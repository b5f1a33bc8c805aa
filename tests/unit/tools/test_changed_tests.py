"""`make test-changed` runs the tests that mirror what was changed."""

from tools.changed_tests import mirroring_tests

TESTS = [
    "tests/integration/router/test_admissions.py",
    "tests/unit/cluster/commands/test_plan.py",
    "tests/unit/repository/test_vocabulary.py",
    "tests/unit/router/test_admissions.py",
    "tests/unit/router/test_quotas.py",
]


def test_module_with_tests_of_its_own_runs_only_those() -> None:
    assert mirroring_tests(["neox_serve/router/admissions.py"], TESTS) == [
        "tests/integration/router/test_admissions.py",
        "tests/unit/router/test_admissions.py",
    ]


def test_module_outside_the_product_package_is_mirrored_under_its_full_path() -> None:
    assert mirroring_tests(["cluster/commands/plan.py"], TESTS) == ["tests/unit/cluster/commands/test_plan.py"]


def test_module_without_tests_of_its_own_runs_the_tests_of_its_folder() -> None:
    assert mirroring_tests(["neox_serve/router/server.py"], TESTS) == [
        "tests/integration/router/test_admissions.py",
        "tests/unit/router/test_admissions.py",
        "tests/unit/router/test_quotas.py",
    ]


def test_changed_test_runs_itself() -> None:
    assert mirroring_tests(["tests/unit/router/test_quotas.py"], TESTS) == ["tests/unit/router/test_quotas.py"]


def test_page_or_proto_runs_the_tests_of_the_repository() -> None:
    assert mirroring_tests(["docs/index.md"], TESTS) == ["tests/unit/repository/test_vocabulary.py"]


def test_module_in_an_untested_folder_runs_nothing() -> None:
    assert mirroring_tests(["tools/unknown/module.py", "tests/fakes/clock.py"], TESTS) == []
