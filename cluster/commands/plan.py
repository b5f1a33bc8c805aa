"""`neox-serve plan`: computes the GPUs that a model and a load need. It needs no GPU."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from neox_serve.cli.console import JsonOption, print_json, print_view
from neox_serve.cli.errors import CommandError

if TYPE_CHECKING:
    from neox_serve.model.facts import ModelFacts

_MODEL, _LOAD, _GPUS, _RESULTS = "Model", "Load", "GPUs", "Results"
_NEOX_20B = "gpt-neox-20b"


def _option(panel: str, text: str, *names: str, metavar: str | None = None, minimum: float | None = None) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, metavar=metavar, min=minimum)


def plan(  # noqa: PLR0913 - the command's options, one by one
    *,
    model: Annotated[str, _option(_MODEL, "gpt-neox-20b, a config.json, or the folder that contains one.")] = _NEOX_20B,
    quantization: Annotated[
        Literal["none", "int8", "int4", "any"],
        _option(_MODEL, "Quantization of the weights; any: compare all."),
    ] = "none",
    max_model_len: Annotated[int | None, _option(_MODEL, "Context length in tokens. Default: the model's maximum.", minimum=1)] = None,
    rate: Annotated[float, _option(_LOAD, "Requests per second.")] = 5.0,
    input_tokens: Annotated[float, _option(_LOAD, "Mean prompt length of a request, in tokens.")] = 600.0,
    output_tokens: Annotated[float, _option(_LOAD, "Mean output length of a request, in tokens.")] = 200.0,
    ttft_s: Annotated[float, _option(_LOAD, "Target time to first token (TTFT).", "--ttft", metavar="SECONDS")] = 2.0,
    tpot_s: Annotated[float, _option(_LOAD, "Target time per output token (TPOT).", "--tpot", metavar="SECONDS")] = 0.1,
    gpu: Annotated[
        list[str] | None, _option(_GPUS, "A GPU type and how many are available; repeatable (default: a100-80=8).", metavar="TYPE=COUNT")
    ] = None,
    price: Annotated[
        list[str] | None,
        _option(_GPUS, "Price of one GPU per hour; repeatable. Default: built-in prices.", metavar="TYPE=PRICE"),
    ] = None,
    utilization: Annotated[float, _option(_GPUS, "Fraction of a GPU's memory that the engine may use, 0 to 1.")] = 0.9,
    config: Annotated[
        Path | None,
        _option(_RESULTS, "Write settings of the best layout to this file, for `neox-serve up`.", metavar="FILE"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Plan the GPUs, the layout and the number of replicas for a model and a load."""
    from cluster.planning.plan import Load, PlanRequest
    from cluster.planning.plan import plan as make
    from cluster.views.plan import plan_figures, plan_view
    from neox_serve.model.memory import Quantization

    facts = _facts(model)
    quantizations = tuple(Quantization) if quantization == "any" else (Quantization(quantization),)
    gpus = {name: int(count) for name, count in _pairs(gpu or ["a100-80=8"], "--gpu")}
    try:
        load = Load(rate, input_tokens, output_tokens, ttft_s, tpot_s)
        request = PlanRequest(
            facts, load, gpus, max_model_len or facts.positions, quantizations, utilization, dict(_pairs(price or [], "--price"))
        )
    except ValueError as error:
        raise CommandError(str(error)) from error
    found = make(request)
    if as_json:
        print_json(plan_figures(found))
    else:
        print_view(plan_view(found))
    if found.best is None:
        raise typer.Exit(1)
    if config is not None:
        _write_settings(config, found.best, request, model)


def _facts(model: str) -> "ModelFacts":
    from cluster.planning.plan import NEOX_20B
    from neox_serve.model.facts import ModelFacts

    if model == _NEOX_20B:
        return NEOX_20B
    path = Path(model)
    path = path / "config.json" if path.is_dir() else path
    try:
        return ModelFacts.from_config(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{path}: {error}", param_hint="--model") from error


def _pairs(texts: list[str], option: str) -> list[tuple[str, float]]:
    from cluster.planning.plan import GPUS

    found = []
    for text in texts:
        name, _, value = text.partition("=")
        if name not in GPUS:
            raise typer.BadParameter(f"{name!r} is invalid; the GPU must be one of {', '.join(GPUS)}", param_hint=option)
        if not value.replace(".", "", 1).isdigit() or float(value) <= 0:
            raise typer.BadParameter(f"{text!r} is invalid; it must have the form {name}=NUMBER with a positive number", param_hint=option)
        found.append((name, float(value)))
    return found


def _write_settings(config: Path, best: Any, request: Any, model: str) -> None:
    import yaml

    from cluster.planning.plan import serve_settings
    from neox_serve.settings import parse

    path = Path(model)
    source = "EleutherAI/gpt-neox-20b" if model == _NEOX_20B else str(path if path.is_dir() else path.parent)
    name = model if model == _NEOX_20B else Path(source).name or "model"
    values = serve_settings(best, request, {"name": name, "source": source})
    parse(values)
    config.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    typer.echo(f"Settings: {config}; start with `neox-serve up --config {config}`", err=True)
