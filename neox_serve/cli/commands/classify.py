"""`neox-serve classify`: few-shot and zero-shot classification."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from neox_serve.cli.connection import Connection, connected, interruptible
from neox_serve.cli.console import AdapterOption, JsonOption, ModelOption, TextsArgument, TimeoutOption, print_json, read_texts
from neox_serve.cli.errors import CommandError

if TYPE_CHECKING:
    from neox_serve.client import Client
    from neox_serve.client.few_shot import Classification, Example, Question

_PROMPT = "Prompt"
_SAFE_PAIRS = 16
"""Pairs that every server accepts in one call of Score, so that its limit need not be asked for."""


@connected
@interruptible
def classify(  # noqa: PLR0913 - the command's options, one by one
    connection: Connection,
    *,
    texts: TextsArgument,
    label: Annotated[list[str] | None, typer.Option(help="A possible label; repeatable. Default: the labels of the examples.")] = None,
    examples: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help='JSONL file with one {"text": ..., "label": ...} per line. Default: none (zero-shot).'),
    ] = None,
    shots: Annotated[
        int, typer.Option(min=0, help="Number of examples per prompt: those most similar to the text, spread evenly over the labels.")
    ] = 4,
    calibrate: Annotated[bool, typer.Option(help="Correct for how likely each label is without a text.")] = True,
    template: Annotated[
        str | None,
        typer.Option(
            metavar="TEMPLATE",
            help=r"Prompt for one text, with {text} in its place; \n is a newline. Default: Text: {text}\nLabel:",
            rich_help_panel=_PROMPT,
        ),
    ] = None,
    instruction: Annotated[str, typer.Option(metavar="TEXT", help="Text at the beginning of the prompt.", rich_help_panel=_PROMPT)] = "",
    model: ModelOption = None,
    adapter: AdapterOption = None,
    timeout_s: TimeoutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Assign each text the label that is the most likely continuation of a prompt."""
    known = _read_examples(examples) if examples else []
    labels = label or list(dict.fromkeys(example.label for example in known))
    questions = [_question(text, labels, known, shots, template, instruction, calibrated=calibrate) for text in read_texts(texts)]
    with connection.client() as client:
        max_pairs = _max_pairs(client, len(questions[0].pairs()), model)
        for question in questions:
            pairs, scored = question.pairs(), list[float]()
            for begin in range(0, len(pairs), max_pairs):
                part = pairs[begin : begin + max_pairs]
                result = client.score(part, model=model, adapter=adapter, truncation="keep_end", timeout_s=timeout_s)
                scored += [score.log_likelihood for score in result.scores]
            _show(question, question.classify(scored), as_json=as_json)


def _max_pairs(client: "Client", pairs: int, model: str | None) -> int:
    """The number of pairs that one call may have, at most `pairs`. The server is asked only if there are many."""
    if pairs <= _SAFE_PAIRS:
        return pairs
    return min((each.limits.prompts_per_request for each in client.models() if model in {None, each.name}), default=pairs)


def _question(
    text: str, labels: list[str], known: "list[Example]", shots: int, template: str | None, instruction: str, *, calibrated: bool
) -> "Question":
    from neox_serve.client.few_shot import Question, Template, select_examples

    try:
        form = Template(instruction=instruction) if template is None else Template(template.replace("\\n", "\n"), instruction=instruction)
        return Question(text, labels, select_examples(known, text, shots), form, calibrated=calibrated)
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
        raise ValueError(f'"{name}" must be a non-empty text')
    return value


def _show(question: "Question", found: "Classification", *, as_json: bool) -> None:
    if as_json:
        print_json({"text": question.text, "label": found.label, "probabilities": found.probabilities})
        return
    shares = ", ".join(f"{label} {probability:.2f}" for label, probability in found.probabilities.items())
    print(f"{found.label}  ({shares})")
