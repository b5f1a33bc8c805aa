"""A plan as a table, and as JSON holds it."""

from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cluster.planning.plan import GIB, Plan, Planned
from neox_serve.model.memory import kv_bytes_per_token, parameters

_SHOWN = 8


def plan_view(found: Plan) -> RenderableType:
    """What is planned, the best first, and why the others are refused."""
    facts = found.wish.facts
    head = Text(
        f"{parameters(facts):,} parameters, {kv_bytes_per_token(facts):,} bytes of KV a token; "
        f"{found.wish.load.rate:g} requests/s of {found.wish.load.input_tokens:g} + {found.wish.load.output_tokens:g} tokens"
    )
    parts: list[RenderableType] = [head]
    if found.planned:
        parts.append(_planned(found))
    if found.refused:
        parts.append(_refused(found))
    if found.nearest:
        parts.append(Text(f"Nothing serves this. But {found.nearest}.", style="bold red"))
    return Group(*parts)


def _planned(found: Plan) -> Table:
    columns = ("weights GiB", "KV tokens", "sequences", "replicas", "GPUs", "TTFT ms", "TPOT ms", "tok/s", "cost/h")
    table = Table("layout", *columns, title="Layouts that serve it, the best first", title_justify="left")
    for one in found.planned[:_SHOWN]:
        table.add_row(escape(str(one.layout)), *_cells(one))
    return table


def _cells(one: Planned) -> list[str]:
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


def _refused(found: Plan) -> Table:
    table = Table("layout", "why not", title="Refused", title_justify="left")
    for one in found.refused:
        table.add_row(escape(str(one.layout)), escape(one.reason))
    return table


def plan_figures(found: Plan) -> dict[str, Any]:
    """All of it, by names with units."""
    facts = found.wish.facts
    return {
        "parameters": parameters(facts),
        "kv_bytes_per_token": kv_bytes_per_token(facts),
        "load": asdict(found.wish.load),
        "planned": [asdict(one) | {"gpus": one.gpus} for one in found.planned],
        "refused": [asdict(one) for one in found.refused],
        "nearest": found.nearest,
    }
