"""Sections about the cluster around the engines: router, batch jobs, internal links, observability and Ray."""

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, model_validator

from neox_serve.core.scheduling.routing import DEFAULT_IMBALANCE_THRESHOLD_TOKENS
from neox_serve.settings.sections import Section, node_resource


class RouterSettings(Section):
    """The router: quotas, the request queue, and the choice of a replica for each request."""

    host: str = Field(
        "127.0.0.1",
        pattern=r"^[0-9a-fA-F.:]+$",
        description="IP address on which router, replicas and gateways listen for each other. "
        "0.0.0.0 stands for each node's own address, which clusters of several nodes need.",
    )
    port: int = Field(0, ge=0, le=65535, description="TCP port of the router's internal link. 0 chooses a free port.")
    peer_grace_s: float = Field(
        3.0, ge=0, description="Seconds for which the router keeps the leases of a gateway or replica whose connection was lost."
    )
    load_report_interval_s: float = Field(0.25, gt=0, description="Time between two load reports of a replica, in seconds.")
    max_queued_requests: int = Field(
        4_096,
        ge=0,
        description="Maximum number of requests that wait for a replica, per model and pool. If the queue is full, a request of the lowest "
        "priority is rejected.",
    )
    max_queued_tokens: int = Field(
        8_000_000, ge=0, description="Maximum number of prompt and output tokens of all waiting requests together, per model and pool."
    )
    max_queue_wait_s: float = Field(60.0, gt=0, description="Maximum time, in seconds, that a request waits in the queue.")
    policy: Literal["least-tokens", "power-of-two", "prefix-affinity", "kv-aware", "session"] = Field(
        "kv-aware",
        description="How the replica of a request is chosen. `least-tokens`: fewest outstanding tokens; `power-of-two`: the less loaded of "
        "two random replicas; `prefix-affinity`: by a hash of the prompt's first tokens; `kv-aware`: longest cached prefix; `session`: by "
        "the metadata key neox-session.",
    )
    imbalance_threshold_tokens: int = Field(
        DEFAULT_IMBALANCE_THRESHOLD_TOKENS,
        ge=0,
        description="Load imbalance, in outstanding tokens over the least loaded replica, above which prefix, session and adapter affinity "
        "are ignored. The default is two full contexts of GPT-NeoX-20B.",
    )
    max_bulk_requests_per_replica: int = Field(
        112,
        ge=1,
        description="Maximum number of BULK requests per replica while no other class has requests. Keep it below the engine's "
        "max_num_seqs, so that a new interactive request finds a free slot.",
    )
    max_bulk_requests_per_replica_contended: int = Field(
        2, ge=1, description="Maximum number of BULK requests per replica while requests of other classes run, or ran until just now."
    )
    node_resource: str | None = node_resource()


class BatchSettings(Section):
    """Batch jobs, which run in this Ray cluster and call its gateways."""

    folder: str | None = Field(
        None,
        min_length=1,
        description="Folder of the jobs' files, with one subfolder per tenant: a path that all nodes share, or an fsspec URL such as "
        "s3://bucket/jobs. Unset: `batch` in the state folder.",
    )
    tasks_folder: Path | None = Field(
        None,
        description="Folder, available on all nodes, with additional evaluation tasks in the format of lm-evaluation-harness "
        "(its option --include_path). Tasks can contain code, which runs with the rights of the cluster.",
    )
    max_running_jobs: int = Field(4, ge=1, description="Maximum number of jobs that run at a time. Further jobs wait in a queue.")
    gateway_address: str | None = Field(
        None, description="Address (host:port) of the gateway that jobs call. Unset: the address formed by gateway.host and gateway.port."
    )
    tls_ca: Path | None = Field(None, description="PEM file with the authority that signed the gateway's certificate.")
    tls_certificate: Path | None = Field(
        None, description="PEM file with the client certificate of jobs, for gateways that require one. Requires tls_key."
    )
    tls_key: Path | None = Field(None, description="PEM file with the private key of tls_certificate.")

    @model_validator(mode="after")
    def _check_tls_files(self) -> "BatchSettings":
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key must be set together")
        return self


class LinkSettings(Section):
    """Mutual TLS on the internal links between router, gateways and replicas.

    If it is not set, the links use plain text, which is suitable only for a private network.
    """

    certificate: Path | None = Field(
        None, description="PEM file with the certificate chain that every process presents. It must be valid for server_name."
    )
    key: Path | None = Field(None, description="PEM file with the private key of certificate.")
    ca: Path | None = Field(None, description="PEM file with the authority that signed certificate.")
    server_name: str = Field("neox-serve", min_length=1, description="Host name that the certificates are issued for.")

    @model_validator(mode="after")
    def _check_tls_files(self) -> "LinkSettings":
        if len({part is None for part in (self.certificate, self.key, self.ca)}) != 1:
            raise ValueError("certificate, key and ca must be set together")
        return self


class MetricsSettings(Section):
    """The router's HTTP endpoint with the Prometheus metrics of the whole cluster."""

    enabled: bool = Field(True, description="Whether the endpoint is served.")
    host: str = Field("127.0.0.1", description="Address that the endpoint listens on.")
    port: int = Field(9464, ge=0, le=65535, description="TCP port of the endpoint. 0 chooses a free port.")


class ClientSettings(Section):
    """Credentials that the `neox-serve` commands present to a gateway."""

    api_key: SecretStr | None = Field(
        None, description="API key or token. Prefer the environment variable or api_key_file, so that no settings file contains it."
    )
    api_key_file: Path | None = Field(None, description="File that holds the API key or token. Excludes api_key.")

    @model_validator(mode="after")
    def _check_single_key(self) -> "ClientSettings":
        if self.api_key is not None and self.api_key_file is not None:
            raise ValueError("only one of api_key and api_key_file may be set")
        return self


class TracingSettings(Section):
    """OpenTelemetry traces of calls, across gateway, router and replicas."""

    endpoint: str | None = Field(
        None, description="OTLP/HTTP endpoint that receives spans, for example http://collector:4318/v1/traces. Unset: no tracing."
    )
    sample_fraction: float = Field(
        1.0, ge=0, le=1, description="Fraction of calls to trace, for calls whose client does not make that decision."
    )


class LogSettings(Section):
    """Log output of every process."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Minimum level of the lines that are written.")
    format: Literal["console", "json"] = Field("console", description="Format of a line: readable text, or one JSON object per line.")


class RaySettings(Section):
    """The Ray cluster that everything runs on."""

    address: str = Field(
        "local", description="`local` starts a Ray cluster in the command's own process. Otherwise the address of a cluster, or `auto`."
    )
    dashboard_port: int = Field(8265, ge=1, le=65535, description="TCP port of Ray's dashboard in a cluster started by `local`.")
    object_store_bytes: int = Field(
        80_000_000,
        ge=78_643_200,
        description="Size of Ray's object store, in bytes, in a cluster started by `local`. The minimum is Ray's. Requests do not pass "
        "through the object store.",
    )
