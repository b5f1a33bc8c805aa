"""Deploys the applications through Ray Serve's REST API, as KubeRay does, and reports their progress until all of them run.

Progress comes from Serve's controller, because the REST API's client waits without limit if Ray's dashboard is gone. Therefore this process
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
    """An application did not start. The message names it and contains Serve's report."""


@dataclass(frozen=True, slots=True)
class ApplicationProgress:
    """The progress of one application that starts."""

    name: str
    ready: bool
    failed: bool
    waiting_for: str
    """What is not ready yet, as text for users; empty if `ready`."""


def deploy(dashboard_url: str, settings: Settings) -> None:
    """Deploys the applications and returns immediately. Serve updates those that differ from the running ones."""
    ServeSubmissionClient(dashboard_url).deploy_applications(serve_config(settings))


def progress() -> list[ApplicationProgress]:
    """Returns the progress of every application."""
    return [_application_progress(name, application) for name, application in serve.status().applications.items()]


def wait_until_running(timeout_s: float, report: Callable[[list[ApplicationProgress]], None], stopped: Callable[[], bool]) -> None:
    """Waits until every application runs, and calls `report` repeatedly. Returns early if `stopped` returns true.

    Raises DeploymentError, or TimeoutError that names what is not ready.
    """
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
            not_ready = "; ".join(f"{application.name}: {application.waiting_for}" for application in applications if not application.ready)
            raise TimeoutError(f"not running after {timeout_s:g} s: {not_ready}")
        time.sleep(_POLL_S)


def _application_progress(name: str, application: ApplicationStatusOverview) -> ApplicationProgress:
    failed = application.status == "DEPLOY_FAILED"
    if application.status == "RUNNING":
        return ApplicationProgress(name, ready=True, failed=False, waiting_for="")
    waiting = [] if failed else [_waiting_for(key, deployment) for key, deployment in application.deployments.items()]
    message = "; ".join(filter(None, waiting)) or application.message.strip() or "being built"
    return ApplicationProgress(name, ready=False, failed=failed, waiting_for=message[-_MESSAGE_CHARACTERS:])


def _waiting_for(name: str, deployment: DeploymentStatusOverview) -> str:
    if deployment.status == "HEALTHY":
        return ""
    counts = ", ".join(f"{count} {state.lower()}" for state, count in deployment.replica_states.items() if count) or "no process yet"
    return f"{name}: {counts}" + (f" ({deployment.message.strip()})" if deployment.message.strip() else "")
