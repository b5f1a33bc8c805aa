"""`up` and `apply` check the engines' settings before they use Ray."""

from pathlib import Path

import psutil
import pytest
import ray
from typer.testing import CliRunner

from cluster.cli import app
from cluster.local import cluster as local
from cluster.local import state

INVALID = ("--set", "embedding.engine.max_model_len=100000")
REMOTE_RAY = ("--set", "ray.address=10.0.0.1:6379")


class RayReachedError(Exception):
    """The command tried to start a cluster or to connect to one."""


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
    """A record of a cluster that this process runs."""
    process = psutil.Process()
    state.record(
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


def test_up_with_invalid_engine_settings_does_not_start_ray() -> None:
    done = CliRunner().invoke(app, ["up", *INVALID])
    assert done.exit_code == 1
    assert "embedding.engine.max_model_len: 100000" in done.stderr


@pytest.mark.usefixtures("running")
def test_apply_with_invalid_engine_settings_does_not_connect() -> None:
    done = CliRunner().invoke(app, ["apply", *INVALID])
    assert done.exit_code == 1
    assert "embedding.engine.max_model_len: 100000" in done.stderr


@pytest.mark.usefixtures("running")
def test_apply_with_valid_engine_settings_connects() -> None:
    assert isinstance(CliRunner().invoke(app, ["apply"]).exception, RayReachedError)


def test_up_with_valid_engine_settings_starts_ray() -> None:
    assert isinstance(CliRunner().invoke(app, ["up"]).exception, RayReachedError)


def test_up_on_a_remote_ray_cluster_does_not_check_engines_here() -> None:
    assert isinstance(CliRunner().invoke(app, ["up", *INVALID, *REMOTE_RAY]).exception, RayReachedError)
