"""`neox-serve classify`: few- and zero-shot classification."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from neox_serve.cli.connection import Connection, connected, interruptible
from neox_serve.cli.console import JsonOption, print_json, read_texts
from neox_serve.cli.errors import CommandError

if TYPE_CHECKING:
    from neox_serve.client import Client
    from neox_serve.client.few_shot import Answer, Example, Question

_PROMPT = "Prompt"
_FEW_PAIRS = 16


@connected
@interruptible
def classify(  # noqa: PLR0913 - the command's options, one by one
    connection: Connection,
    *,
    texts: Annotated[list[str], typer.Argument(metavar="TEXT...", help='"-" reads standard input.')],
    label: Annotated[list[str] | None, typer.Option(help="What a text may be; repeatable. Absent: the examples' labels.")] = None,
    examples: Annotated[
        Path | None, typer.Option(metavar="FILE", help='JSONL: {"text": ..., "label": ...} a line. Absent: zero-shot.')
    ] = None,
    shots: Annotated[int, typer.Option(min=0, help="Examples in a prompt, those closest to its text, each label in turn.")] = 4,
    calibrate: Annotated[bool, typer.Option(help="Hold labels against what they are worth without a text.")] = True,
    asked: Annotated[
        str | None,
        typer.Option(metavar="TEMPLATE", help=r"How a text stands in the prompt; default: Text: {text}\nLabel:", rich_help_panel=_PROMPT),
    ] = None,
    instruction: Annotated[str, typer.Option(help="Stands before all.", rich_help_panel=_PROMPT)] = "",
    model: Annotated[str | None, typer.Option(help="Absent: the one served.")] = None,
    adapter: Annotated[str | None, typer.Option(help="LoRA adapter.")] = None,
    timeout_s: Annotated[float | None, typer.Option("--timeout", metavar="SECONDS", help="Give up after this long.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Say which label fits a text, by how likely each is as its continuation."""
    known = _read_examples(examples) if examples else []
    labels = label or list(dict.fromkeys(example.label for example in known))
    questions = [_question(text, labels, known, shots, asked, instruction, calibrated=calibrate) for text in read_texts(texts)]
    with connection.client() as client:
        most = _max_pairs(client, len(questions[0].pairs()), model)
        for question in questions:
            pairs, scored = question.pairs(), list[float]()
            for begin in range(0, len(pairs), most):
                part = pairs[begin : begin + most]
                result = client.score(part, model=model, adapter=adapter, truncation="keep_end", timeout_s=timeout_s)
                scored += [score.log_likelihood for score in result.scores]
            _show(question, question.answer(scored), as_json=as_json)


def _max_pairs(client: "Client", pairs: int, model: str | None) -> int:
    """How many one call may have, all texts having as many; of few that is not asked."""
    if pairs <= _FEW_PAIRS:
        return pairs
    return min((each.limits.prompts_per_request for each in client.models() if model in {None, each.name}), default=pairs)


def _question(
    text: str, labels: list[str], known: "list[Example]", shots: int, asked: str | None, instruction: str, *, calibrated: bool
) -> "Question":
    from neox_serve.client.few_shot import Question, Template, chosen

    try:
        template = Template(instruction=instruction) if asked is None else Template(asked.replace("\\n", "\n"), instruction=instruction)
        return Question(text, labels, chosen(known, text, shots), template, calibrated=calibrated)
    except ValueError as error:
        raise CommandError(str(error)) from error


def _read_examples(path: Path) -> "list[Example]":
    from neox_serve.client.few_shot import Example

    found = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{path}: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            found.append(Example(_text(values, "text"), _text(values, "label")))
        except (ValueError, TypeError) as error:
            raise CommandError(f"{path}, line {number}: {error}") from error
    return found


def _text(values: object, name: str) -> str:
    value = values.get(name) if isinstance(values, dict) else None
    if not isinstance(value, str) or not value:
        raise ValueError(f'"{name}" must be a text that is not empty')
    return value


def _show(question: "Question", answer: "Answer", *, as_json: bool) -> None:
    if as_json:
        print_json({"text": question.text, "label": answer.label, "probabilities": answer.probabilities})
        return
    told = ", ".join(f"{label} {probability:.2f}" for label, probability in answer.probabilities.items())
    print(f"{answer.label}  ({told})")
