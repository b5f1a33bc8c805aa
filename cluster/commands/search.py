"""`neox-serve search`."""

from typing import Annotated

import typer

from neox_serve.cli.connection import Connection, connected, interruptible
from neox_serve.cli.console import JsonOption, Pooling, TextsArgument, print_json, read_texts
from neox_serve.cli.errors import CommandError
from neox_serve.core.jobs.vector_target import VectorTarget


@connected
@interruptible
def search(
    connection: Connection,
    target: Annotated[
        str,
        typer.Argument(metavar="TARGET", help="Vector database in the form of `job submit embed --into`, such as milvus:FILE#COLLECTION."),
    ],
    texts: TextsArgument,
    *,
    limit: Annotated[int, typer.Option("--limit", "-k", min=1, help="Maximum number of rows per text.")] = 5,
    pooling: Annotated[
        Pooling | None,
        typer.Option(help="Pooling that the rows were embedded with. Default: the model's own pooling."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find the rows of a vector database that are most similar to a text."""
    from deployments.jobs.bulk.vector_stores import open_store

    queries = read_texts(texts)
    with connection.client() as client:
        vectors = client.embed(queries, pooling=pooling).vectors
    try:
        with open_store(_parsed(target)) as store:
            found = [store.search(vector.tolist(), limit) for vector in vectors]
    except OSError as error:
        raise CommandError(f"{target}: {error.strerror or error}") from error
    for text, rows in zip(queries, found, strict=True):
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
