"""Hands the applications to Ray Serve through its REST API, as KubeRay does, and says what it waits for until all of them run.

Progress is asked of Serve's controller, not of the REST API, whose client waits without limit when Ray's dashboard is gone. So this process
must be attached to the Ray cluster (`ray.init`).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from ray import serve
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient
from ray.serve.schema import ApplicationStatusOverview, DeploymentStatusOverview

from deployments.app import serve_config
from neox_serve.settings import Settings

_POLL_S = 0.1
_MESSAGE_CHARACTERS = 2_000


class DeploymentError(RuntimeError):
    """An application could not be brought up. The message says which and what Serve reports of it."""


@dataclass(frozen=True, slots=True)
class ApplicationProgress:
    """One application on its way up. waiting_for: what is not ready yet, for people; empty once `ready`."""

    name: str
    ready: bool
    failed: bool
    waiting_for: str


def deploy(dashboard_url: str, settings: Settings) -> None:
    """Declares the applications; Serve rolls what differs from what runs. Returns at once."""
    ServeSubmissionClient(dashboard_url).deploy_applications(serve_config(settings))


def progress() -> list[ApplicationProgress]:
    """Where every application stands."""
    return [_application_progress(name, application) for name, application in serve.status().applications.items()]


def wait_until_running(timeout_s: float, report: Callable[[list[ApplicationProgress]], None], stopped: Callable[[], bool]) -> None:
    """Waits until every application runs, reporting all along. Raises DeploymentError, or TimeoutError naming what is missing."""
    deadline_s = time.monotonic() + timeout_s
    while not stopped():
        applications = progress()
        report(applications)
        failed = [application for application in applications if application.failed]
        if failed:
            raise DeploymentError("\n".join(f"{application.name}: {application.waiting_for}" for application in failed))
        if applications and all(application.ready for application in applications):
            return
        if time.monotonic() > deadline_s:
            missing = "; ".join(f"{application.name}: {application.waiting_for}" for application in applications if not application.ready)
            raise TimeoutError(f"not running after {timeout_s:g} s: {missing}")
        time.sleep(_POLL_S)


def _application_progress(name: str, application: ApplicationStatusOverview) -> ApplicationProgress:
    failed = application.status == "DEPLOY_FAILED"
    if application.status == "RUNNING":
        return ApplicationProgress(name, ready=True, failed=False, waiting_for="")
    waits = [] if failed else [_deployment_waits(key, deployment) for key, deployment in application.deployments.items()]
    message = "; ".join(filter(None, waits)) or application.message.strip() or "being built"
    return ApplicationProgress(name, ready=False, failed=failed, waiting_for=message[-_MESSAGE_CHARACTERS:])


def _deployment_waits(name: str, deployment: DeploymentStatusOverview) -> str:
    if deployment.status == "HEALTHY":
        return ""
    counts = ", ".join(f"{count} {state.lower()}" for state, count in deployment.replica_states.items() if count) or "no process yet"
    return f"{name}: {counts}" + (f" ({deployment.message.strip()})" if deployment.message.strip() else "")
