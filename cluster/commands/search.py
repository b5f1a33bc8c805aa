"""`neox-serve search`: the rows of a vector database that are nearest to a text."""

from typing import Annotated

import typer

from neox_serve.cli.connection import Connection, connected, interruptible
from neox_serve.cli.console import JsonOption, Pooling, print_json, read_texts
from neox_serve.cli.errors import CommandError
from neox_serve.core.jobs.vector_target import VectorTarget


@connected
@interruptible
def search(
    connection: Connection,
    target: Annotated[
        str,
        typer.Argument(metavar="TARGET", help="As `job submit embed --into` takes it, such as milvus:FILE#COLLECTION."),
    ],
    texts: Annotated[list[str], typer.Argument(metavar="TEXT...", help='"-": standard input.')],
    *,
    most: Annotated[int, typer.Option("--most", "-k", min=1, help="Rows for each text.")] = 5,
    pooling: Annotated[Pooling | None, typer.Option(help="As the rows were embedded; absent: the model's default.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Find the rows of a vector database that are nearest to a text."""
    from deployments.jobs.bulk.vector_stores import open_store

    asked = read_texts(texts)
    with connection.client() as client:
        vectors = client.embed(asked, pooling=pooling).vectors
    try:
        with open_store(_parsed(target)) as store:
            found = [store.search(vector.tolist(), most) for vector in vectors]
    except OSError as error:
        raise CommandError(f"{target}: {error.strerror or error}") from error
    for text, rows in zip(asked, found, strict=True):
        if as_json:
            print_json({"text": text, "found": [{"id": row.id, "text": row.text, "similarity": row.similarity} for row in rows]})
            continue
        for row in rows:
            print(f"{row.similarity:.3f}  {row.id}  {row.text.splitlines()[0] if row.text else ''}".rstrip())


def _parsed(target: str) -> VectorTarget:
    try:
        return VectorTarget.parse(target)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="TARGET") from error
