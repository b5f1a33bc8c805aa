from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.jobs.quantize.arguments import QuantizeJob, arguments_of, parse_arguments
from neox_serve.core.jobs.job import work_of
from neox_serve.core.jobs.quantize import QUANTIZE, SCHEME_NAMES, QuantizeWork

WORK = QuantizeWork("w8a8", "out", "text", "other")


@given(
    work=st.builds(
        QuantizeWork,
        scheme=st.sampled_from(SCHEME_NAMES),
        output=st.just("/out put"),
        calibration=st.just("text"),
        held_out=st.just("s3://b/other"),
        sequences=st.integers(1, 65_536),
        sequence_tokens=st.integers(1, 2_048),
        held_out_tokens=st.integers(2, 1 << 24),
        serve_tokens=st.integers(0, 1_024),
    ),
    config=st.sampled_from([None, Path("/engines.json")]),
    revision=st.sampled_from([None, "main"]),
)
def test_job_is_made_again_from_its_arguments(work: QuantizeWork, config: Path | None, revision: str | None) -> None:
    job = QuantizeJob(work, "/a model", revision, config, Path("/report.json"))
    assert parse_arguments(arguments_of(job)) == job
    assert work_of(QUANTIZE, asdict(work)) == work


@pytest.mark.parametrize(
    ("name", "value"), [("scheme", "w2"), ("sequences", 0), ("sequence_tokens", 2_049), ("held_out_tokens", 1), ("serve_tokens", -1)]
)
def test_wrong_option_is_named(name: str, value: Any) -> None:
    assert [problem[0] for problem in replace(WORK, **{name: value}).problems()] == [name]
