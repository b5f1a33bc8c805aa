"""`up` and `apply` look at the engines' settings before they touch Ray."""

from pathlib import Path

import psutil
import pytest
import ray
from typer.testing import CliRunner

from cluster.cli import app
from cluster.local import cluster as local
from cluster.local import state

BAD = ("--set", "embedding.engine.max_model_len=100000")
ELSEWHERE = ("--set", "ray.address=10.0.0.1:6379")


class RayReachedError(Exception):
    """A cluster would have been started or spoken to."""


@pytest.fixture(autouse=True)
def state_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    def reach(*_: object, **__: object) -> None:
        raise RayReachedError

    monkeypatch.setattr(local, "LocalCluster", reach)
    monkeypatch.setattr(ray, "init", reach)
    monkeypatch.setenv("NEOX_SERVE_STATE_FOLDER", str(tmp_path))
    return tmp_path


@pytest.fixture
def running(state_folder: Path) -> None:
    """A note of a cluster, run by this process."""
    process = psutil.Process()
    state.note(
        state_folder,
        state.RunningCluster(
            pid=process.pid,
            created_s=process.create_time(),
            gateway_address="127.0.0.1:1",
            dashboard_url="http://127.0.0.1:1",
            ray_address="127.0.0.1:1",
            metrics_url=None,
            log_folder=str(state_folder),
        ),
    )


def test_up_with_an_engine_that_cannot_work_never_starts_ray() -> None:
    done = CliRunner().invoke(app, ["up", *BAD])
    assert done.exit_code == 1
    assert "embedding.engine.max_model_len: 100000" in done.stderr


@pytest.mark.usefixtures("running")
def test_apply_of_an_engine_that_cannot_work_never_reaches_the_cluster() -> None:
    done = CliRunner().invoke(app, ["apply", *BAD])
    assert done.exit_code == 1
    assert "embedding.engine.max_model_len: 100000" in done.stderr


@pytest.mark.usefixtures("running")
def test_apply_of_engines_that_can_work_reaches_the_cluster() -> None:
    assert isinstance(CliRunner().invoke(app, ["apply"]).exception, RayReachedError)


def test_up_with_engines_that_can_work_starts_ray() -> None:
    assert isinstance(CliRunner().invoke(app, ["up"]).exception, RayReachedError)


def test_up_on_other_machines_leaves_the_check_to_them() -> None:
    assert isinstance(CliRunner().invoke(app, ["up", *BAD, *ELSEWHERE]).exception, RayReachedError)
