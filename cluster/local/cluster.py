"""Starts a cluster from this process and stops it again without leaving anything behind.

`serve_until_stopped` implements `neox-serve up`. With `ray.address: local` the Ray cluster lives as long as this process. SIGINT or SIGTERM
drains it: the gateways reject new calls and finish the accepted ones, then the engines stop, then Ray. A second signal skips the draining.
"""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

import psutil
import ray
from ray import serve
from ray._private.worker import BaseContext
from rich.console import Console

from cluster.local import state
from cluster.local.deployment import ApplicationProgress, deploy, progress, wait_until_running
from cluster.local.ray_access import present_token, quiet_about_token
from cluster.views.startup import StartupView
from deployments.app import EMBEDDING_APPLICATION, GATEWAY_APPLICATION, GENERATION_APPLICATION
from deployments.lookup import ROUTER_APPLICATION
from neox_serve.engine.checks import check_engines
from neox_serve.settings import Settings, SettingsError, check_shared_by_nodes

_STOP_ORDER = ((GATEWAY_APPLICATION,), (GENERATION_APPLICATION, EMBEDDING_APPLICATION), (ROUTER_APPLICATION,))
"""Gateways stop first, because they need the engines for the calls that they have accepted."""
_RAY_TIMED_OUT = "timed out during startup"
"""Part of Ray's error message if its processes do not start within 30 s. That happens on a busy machine; Ray is then started once more."""
_RAY_INTERVALS = {
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.2",
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "5000",
    "RAY_DASHBOARD_AGENT_CHECK_PARENT_INTERVAL_S": "2",
    "RAY_DASHBOARD_AGENT_POLL_INTERVAL_S": "5",
    "REPORTER_UPDATE_INTERVAL_MS": "30000",
    "METRICS_RECORD_INTERVAL_S": "60",
    "EVENT_AGENT_REPORT_INTERVAL_SECONDS": "1",
    "SCAN_EVENT_DIR_INTERVAL_SECONDS": "10",
}
"""Environment variables that make Ray monitor itself less often. Its defaults cost a tenth of a core on an idle machine."""
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_CLOSING_S = 30.0
_LEFTOVER_GRACE_S = 5.0
_POLL_S = 0.1


class LocalCluster:
    """A cluster that this process starts. Call `start`, then `wait_ready`; always call `stop` at the end."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.dashboard_url = ""
        self.ray_address = ""
        self.log_folder = ""

    @property
    def gateway_address(self) -> str:
        """host:port of the gateways."""
        return f"{self.settings.gateway.host}:{self.settings.gateway.port}"

    @property
    def metrics_url(self) -> str | None:
        """URL of the metrics endpoint; None if it is disabled."""
        metrics = self.settings.metrics
        return f"http://{metrics.host}:{metrics.port}/metrics" if metrics.enabled else None

    def start(self) -> None:
        """Starts Ray and deploys the applications. Raises SettingsError if a port is in use."""
        _require_free("gateway.port", self.settings.gateway.host, self.settings.gateway.port)
        if self.settings.metrics.enabled:
            _require_free("metrics.port", self.settings.metrics.host, self.settings.metrics.port)
        with _interrupts_blocked():
            context = self._start_ray()
        if len({node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}) > 1:
            check_shared_by_nodes(self.settings)
        self.dashboard_url = f"http://{context.dashboard_url}"
        self.ray_address = context.address_info["gcs_address"]
        self.log_folder = os.path.join(context.address_info["session_dir"], "logs")
        deploy(self.dashboard_url, self.settings)

    def _start_ray(self) -> BaseContext:
        if self.settings.ray.address != "local":
            return _attach(self.settings.ray.address)
        quiet_about_token()
        try:
            return self._start_local_ray()
        except Exception as error:  # Ray raises a plain Exception
            if _RAY_TIMED_OUT not in str(error):
                raise
        return self._start_local_ray()

    def _start_local_ray(self) -> BaseContext:
        os.environ.update(_RAY_INTERVALS)
        return ray.init(
            address="local",
            include_dashboard=True,
            dashboard_port=self.settings.ray.dashboard_port,
            log_to_driver=False,
            logging_level="warning",
            object_store_memory=self.settings.ray.object_store_bytes,
            _system_config={"worker_niceness": 0},  # Ray's default, 15, would let every other process delay the model
        )

    def wait_ready(
        self, report: Callable[[list[ApplicationProgress]], None] = lambda _: None, stopped: Callable[[], bool] = lambda: False
    ) -> None:
        """Waits until every application runs or `stopped` returns true. Raises DeploymentError or TimeoutError."""
        timeout_s = max(self.settings.generation.replicas.start_timeout_s, self.settings.embedding.replicas.start_timeout_s)
        wait_until_running(timeout_s, report, stopped)

    def drain(self, skip: Callable[[], bool] = lambda: False) -> None:
        """Stops the applications in order, each after it has finished its requests. Returns early if `skip` returns true."""
        for names in _STOP_ORDER:
            for name in names:
                serve.delete(name, _blocking=False)
            deadline_s = time.monotonic() + self._longest_drain_s() + _CLOSING_S
            while not skip() and time.monotonic() < deadline_s and self._exists(names):
                time.sleep(_POLL_S)

    def stop(self) -> None:
        """Stops Ray and all processes that it started. Requests that have not been drained are lost."""
        children = psutil.Process().children(recursive=True)
        ray.shutdown()
        _, alive = psutil.wait_procs(children, timeout=_LEFTOVER_GRACE_S)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=_LEFTOVER_GRACE_S)

    def _exists(self, names: tuple[str, ...]) -> bool:
        return any(application.name in names for application in progress())

    def _longest_drain_s(self) -> float:
        settings = self.settings
        return max(
            settings.gateway.drain_timeout_s, settings.generation.replicas.drain_timeout_s, settings.embedding.replicas.drain_timeout_s
        )


def serve_until_stopped(settings: Settings) -> None:
    """Starts the cluster, prints how to call it, and runs it until SIGINT or SIGTERM; then drains and stops it.

    Raises SettingsError if an engine's settings are invalid, a port is in use or a cluster of this user already runs, and DeploymentError
    if a part does not start.
    """
    console = Console(stderr=True)
    already = state.running(settings.state_folder)
    if already:
        raise SettingsError(f"a cluster already runs (pid {already.pid}, {already.gateway_address}); stop it with `neox-serve down`")
    _check_here(settings)
    cluster = LocalCluster(settings)
    with _signals() as signals:
        try:
            _bring_up(cluster, console, signals)
            signals.wait_for(1)
            console.print("Draining: finishing what was accepted. Ctrl-C again stops at once.")
            cluster.drain(skip=lambda: signals.count > 1)
        finally:
            cluster.stop()
            state.forget(settings.state_folder)
    console.print("Stopped.")


def stop_running(settings: Settings, timeout_s: float) -> bool:
    """Drains and stops the cluster recorded in the state folder. Returns false if none runs. Raises TimeoutError."""
    cluster = state.running(settings.state_folder)
    if cluster is None:
        return False
    process = psutil.Process(cluster.pid)
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout_s)
    except psutil.TimeoutExpired as error:
        raise TimeoutError(f"the cluster (pid {cluster.pid}) is still draining after {timeout_s:g} s") from error
    return True


def apply_to_running(settings: Settings) -> None:
    """Applies changed settings to the cluster recorded in the state folder by a rolling update, and waits until it is complete.

    Raises SettingsError if no cluster runs or an engine's settings are invalid, and DeploymentError or TimeoutError if a part does not
    start.
    """
    cluster = state.running(settings.state_folder)
    if cluster is None:
        raise SettingsError("no cluster runs here; start one with `neox-serve up`")
    _check_here(settings)
    _attach(cluster.ray_address)
    deploy(cluster.dashboard_url, settings)
    with StartupView(Console(stderr=True)) as view:
        wait_until_running(settings.generation.replicas.start_timeout_s, view.show, stopped=lambda: False)


def _check_here(settings: Settings) -> None:
    """Checks the engines if they run on this machine; elsewhere each checks itself when it starts. Raises SettingsError."""
    if settings.ray.address == "local":
        check_engines(settings)


def _attach(address: str) -> BaseContext:
    present_token()
    return ray.init(address=address, log_to_driver=False, logging_level="warning")


def _bring_up(cluster: LocalCluster, console: Console, signals: "_Signals") -> None:
    console.print(f"Starting Ray and deploying [bold]{cluster.settings.model.name}[/] ...")
    cluster.start()
    signals.listen()
    process = psutil.Process()
    state.record(
        cluster.settings.state_folder,
        state.RunningCluster(
            pid=process.pid,
            created_s=process.create_time(),
            gateway_address=cluster.gateway_address,
            dashboard_url=cluster.dashboard_url,
            ray_address=cluster.ray_address,
            metrics_url=cluster.metrics_url,
            log_folder=cluster.log_folder,
        ),
    )
    with StartupView(console) as view:
        cluster.wait_ready(view.show, stopped=lambda: signals.count > 0)
    if not signals.count:
        console.print(_how_to_call(cluster), highlight=False)


def _how_to_call(cluster: LocalCluster) -> str:
    lines = [
        f"\n[bold green]Serving {cluster.settings.model.name} on {cluster.gateway_address}[/]  (Ctrl-C stops)",
        '  neox-serve generate "def fibonacci(n):" --stream',
        '  neox-serve embed "some text"',
        "  neox-serve status --watch",
        f"dashboard {cluster.dashboard_url}   logs {cluster.log_folder}",
    ]
    return "\n".join([*lines, f"metrics {cluster.metrics_url}"] if cluster.metrics_url else lines)


class _Signals:
    """Counts SIGINT and SIGTERM."""

    def __init__(self) -> None:
        self.count = 0
        self._changed = threading.Event()

    def add(self, *_: object) -> None:
        self.count += 1
        self._changed.set()

    def wait_for(self, count: int) -> None:
        while self.count < count:
            self._changed.wait(1.0)

    def listen(self) -> None:
        """Installs the handlers. Call it again after `ray.init`, which installs a handler that exits immediately."""
        for number in _STOP_SIGNALS:
            signal.signal(number, self.add)


@contextlib.contextmanager
def _signals() -> Iterator[_Signals]:
    former = {number: signal.getsignal(number) for number in _STOP_SIGNALS}
    signals = _Signals()
    signals.listen()
    try:
        yield signals
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Shields processes started in the block from a terminal's Ctrl-C, which reaches the whole process group and ends Ray's dashboard."""
    former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _require_free(key: str, host: str, port: int) -> None:
    """Raises SettingsError if the port is in use. Gateways share their port, so another process there would silently get some calls."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise SettingsError(f"{key}: cannot listen on {host}:{port}: {error.strerror}") from error
