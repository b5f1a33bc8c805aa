"""A plan as a table and as JSON."""

from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cluster.planning.plan import GIB, Plan, PlannedLayout
from neox_serve.model.memory import kv_bytes_per_token, parameters

_SHOWN = 8


def plan_view(found: Plan) -> RenderableType:
    """The layouts that serve the load, best first, and why the others were rejected."""
    facts = found.request.facts
    head = Text(
        f"{parameters(facts):,} parameters, {kv_bytes_per_token(facts):,} bytes of KV cache per token; "
        f"{found.request.load.rate:g} requests/s of {found.request.load.input_tokens:g} + {found.request.load.output_tokens:g} tokens"
    )
    parts: list[RenderableType] = [head]
    if found.planned:
        parts.append(_planned(found))
    if found.rejected:
        parts.append(_rejected(found))
    if found.alternative:
        parts.append(Text(f"No layout serves this load. {found.alternative}", style="bold red"))
    return Group(*parts)


def _planned(found: Plan) -> Table:
    columns = ("weights GiB", "KV tokens", "sequences", "replicas", "GPUs", "TTFT ms", "TPOT ms", "tok/s", "cost/h")
    table = Table("layout", *columns, title="Layouts that serve the load, best first", title_justify="left")
    for one in found.planned[:_SHOWN]:
        table.add_row(escape(str(one.layout)), *_cells(one))
    return table


def _cells(one: PlannedLayout) -> list[str]:
    return [
        f"{one.weight_bytes / GIB:.1f}",
        f"{one.kv_tokens:,}",
        f"{one.sequences}",
        f"{one.replicas}",
        f"{one.gpus}",
        f"{1e3 * one.ttft_s:.0f}",
        f"{1e3 * one.tpot_s:.1f}",
        f"{one.tokens_per_s:,.0f}",
        f"{one.cost:.2f}",
    ]


def _rejected(found: Plan) -> Table:
    table = Table("layout", "reason", title="Rejected layouts", title_justify="left")
    for one in found.rejected:
        table.add_row(escape(str(one.layout)), escape(one.reason))
    return table


def plan_figures(found: Plan) -> dict[str, Any]:
    """All results for JSON. Keys have units."""
    facts = found.request.facts
    return {
        "parameters": parameters(facts),
        "kv_bytes_per_token": kv_bytes_per_token(facts),
        "load": asdict(found.request.load),
        "planned": [asdict(one) | {"gpus": one.gpus} for one in found.planned],
        "rejected": [asdict(one) for one in found.rejected],
        "alternative": found.alternative,
    }
