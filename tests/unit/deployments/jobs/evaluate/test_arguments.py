from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.jobs.access import Access
from deployments.jobs.evaluate.arguments import EvaluateJob, arguments_of, parse_arguments
from deployments.jobs.failures import JobError
from neox_serve.client import Tls
from neox_serve.core.jobs.evaluate import EVALUATE, EvaluateWork
from neox_serve.core.jobs.job import work_of

WORK = EvaluateWork(("piqa",), "out.json")


@given(
    work=st.builds(
        EvaluateWork,
        tasks=st.lists(st.from_regex(r"[a-z][a-z0-9_]{0,9}", fullmatch=True), min_size=1, max_size=5).map(tuple),
        output=st.just("out.json"),
        adapter=st.sampled_from(["", "acme/chat"]),
        shots=st.integers(-1, 100),
        limit=st.integers(0, (1 << 31) - 1),
        concurrency=st.integers(1, 1024),
    ),
    access=st.sampled_from(
        [
            Access("h:1"),
            Access("h:1", Tls(), Path("/key")),
            Access("h:1", Tls(Path("/ca"), Path("/crt"), Path("/pem"))),
        ]
    ),
    folder=st.sampled_from([None, Path("/tasks")]),
)
def test_job_is_made_again_from_its_arguments(work: EvaluateWork, access: Access, folder: Path | None) -> None:
    job = EvaluateJob(work, access, folder, Path("/cache"), 60.0, Path("/report.json"))
    assert parse_arguments(arguments_of(job)) == job
    assert work_of(EVALUATE, asdict(work)) == work


@pytest.mark.parametrize(
    ("name", "value"),
    [("tasks", ()), ("tasks", ("../x",)), ("tasks", ("a,b",)), ("shots", -2), ("shots", 101), ("limit", -1), ("concurrency", 0)],
)
def test_wrong_option_is_named(name: str, value: Any) -> None:
    assert name in {problem[0] for problem in replace(WORK, **{name: value}).problems()}


def test_defaults_have_no_problem() -> None:
    assert not list(WORK.problems())


def test_key_that_cannot_be_read_is_named() -> None:
    with pytest.raises(JobError, match="the API key cannot be read from /nowhere/key"):
        Access("h:1", api_key_file=Path("/nowhere/key")).api_key()
