"""The command without a server: usage, settings, failures in words, and what it takes to say --help."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from cluster.cli import app
from neox_serve.cli.errors import explain
from neox_serve.cli.views.status import age
from neox_serve.core.errors import QuotaViolation, Reason, ServeError, invalid
from neox_serve.settings import Settings, connect_address, restore

COMMANDS = ("up", "down", "apply", "status", "metrics", "logs", "generate", "embed", "tokenize", "detokenize", "models", "bench")
GROUPS = ("job", "job submit", "config", "manifests")


def invoke(*arguments: str, **environment: str) -> Any:
    return CliRunner().invoke(app, [*arguments], env=environment)


def test_every_command_has_help() -> None:
    for command in ("", *COMMANDS, *GROUPS):
        done = invoke(*command.split(), "--help")
        assert done.exit_code == 0, command
        assert "Usage" in done.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing"],
        ["generate"],
        ["generate", "hi", "--truncation", "middle"],
        ["generate", "hi", "--max-tokens", "many"],
        ["generate", "hi", "--logit-bias", "x"],
        ["generate", "hi", "--json-schema", "@/none"],
        ["generate", "hi", "--stream", "--beam-width", "2"],
        ["generate", "hi", "--stream", "--n", "2"],
        ["generate", "hi", "--no-stream", "--chunk-interval", "1"],
        ["generate", "hi", "--chunk-tokens", "2"],
        ["detokenize", "x"],
        ["embed", "hi", "--tls-key", "k.pem"],
        ["metrics", "--url", "file:///etc/passwd"],
        ["config", "show", "--set", "gateway.port"],
        ["config", "show", "--set", "gateway.port.deeper=1"],
        ["config", "show", "--set", "gateway.port=["],
        ["job", "submit", "generate", "i", "o", "--options", "[]"],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    done = invoke(*arguments)
    assert done.exit_code == 2
    assert not isinstance(done.exception, ServeError)


def test_unreachable_gateway_says_how_to_start_one() -> None:
    done = invoke("tokenize", "hi", "--address", "127.0.0.1:1")
    assert done.exit_code == 1
    assert "no gateway answers at 127.0.0.1:1" in done.stderr
    assert "neox-serve up" in done.stderr


def test_address_comes_from_the_settings(tmp_path: Path) -> None:
    assert "127.0.0.1:3" in invoke("models", NEOX_SERVE_GATEWAY__PORT="3").stderr
    (tmp_path / "s.yaml").write_text("gateway: {host: 0.0.0.0, port: 4}")
    assert "127.0.0.1:4" in invoke("models", "--config", str(tmp_path / "s.yaml")).stderr


def test_connect_address_replaces_wildcard_hosts() -> None:
    assert [connect_address(host, 1) for host in ("0.0.0.0", "::", "::1", "a.b")] == ["127.0.0.1:1", "[::1]:1", "[::1]:1", "a.b:1"]


def test_config_show_prints_a_file_with_the_same_settings(tmp_path: Path) -> None:
    done = invoke("config", "show", "--set", "generation.replicas.max=3", "--set", "model.name=other")
    assert done.exit_code == 0
    shown = restore(yaml.safe_load(done.stdout))
    assert (shown.generation.replicas.max, shown.model.name) == (3, "other")
    (tmp_path / "s.yaml").write_text(done.stdout)
    assert invoke("config", "show", "-c", str(tmp_path / "s.yaml")).stdout == done.stdout
    assert Settings.model_validate(json.loads(invoke("config", "show", "--json").stdout)) == restore({})


def test_set_overrides_the_environment_which_overrides_the_file(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("gateway: {port: 1}\nrouter: {port: 1}\nmetrics: {port: 1}")
    environment = {"NEOX_SERVE_GATEWAY__PORT": "2", "NEOX_SERVE_ROUTER__PORT": "2"}
    shown = yaml.safe_load(invoke("config", "show", "-c", str(tmp_path / "s.yaml"), "--set", "gateway.port=3", **environment).stdout)
    assert [shown[section]["port"] for section in ("gateway", "router", "metrics")] == [3, 2, 1]


@pytest.mark.parametrize(("override", "message"), [("gateway.port=99999", "gateway.port: "), ("a.b=1", "a: unknown key")])
def test_invalid_settings_are_named(override: str, message: str) -> None:
    done = invoke("config", "show", "--set", override)
    assert done.exit_code == 1
    assert message in done.stderr


def test_explain_shows_all_of_a_service_error() -> None:
    explanation = explain(invalid("parameters.n", "must be 1 to 16, got 99"))
    assert explanation is not None
    assert "INVALID_ARGUMENT" in explanation
    assert "\n  parameters.n: must be 1 to 16, got 99" in explanation
    quota = ServeError(Reason.QUOTA_EXCEEDED, "m", {"limit": "5"}, 1.25, quota_violations=(QuotaViolation("tenant a", "tokens"),))
    explanation = explain(quota)
    assert explanation is not None
    assert explanation.splitlines() == ["Error: QUOTA_EXCEEDED: m", "  tenant a: tokens", "  limit: 5", "  Try again in 1.2 s."]


def test_explain_of_a_bug_is_none() -> None:
    assert explain(ValueError("a bug")) is None


def test_job_submit_with_invalid_rows_names_them_first(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n{"prompt": 3}\n')
    done = invoke("job", "submit", "generate", str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"))
    assert done.exit_code == 1
    assert "line 2: " in done.stderr


def test_age_shows_two_units() -> None:
    assert [age(seconds) for seconds in (5.9, 65, 3_700, 90_000)] == ["5 s", "1 min 5 s", "1 h 1 min", "1 d 1 h"]


def test_help_lists_no_option_twice() -> None:
    for command in ("generate", "embed", "status"):
        names = re.findall(r"^│ (--[a-z-]+) ", invoke(command, "--help", COLUMNS="200").output, flags=re.MULTILINE)
        assert len(names) == len(set(names))


def parameters(command: Any, path: str = "neox-serve") -> Iterator[tuple[str, Any]]:
    """Every parameter of a command and of its subcommands, with its name."""
    for name, inner in getattr(command, "commands", {}).items():
        yield from parameters(inner, f"{path} {name}")
    yield from ((f"{path}: {parameter.name}", parameter) for parameter in command.params)


def test_every_option_and_argument_has_help() -> None:
    found = list(parameters(get_command(app)))
    assert len(found) > 300
    assert [name for name, parameter in found if not parameter.help and not getattr(parameter, "hidden", False)] == []
