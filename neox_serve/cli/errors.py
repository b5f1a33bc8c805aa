"""How commands report failures. Exit codes: 1 for failures, 2 for wrong usage (typer's own), 130 after Ctrl-C."""

import sys
from typing import Any

from typer.core import TyperGroup

from neox_serve.core.errors import ServeError

UNREACHABLE = "unreachable"
"""The client sets this metadata key, with the address as its value, on errors that did not come from the service."""


class CommandError(Exception):
    """A command cannot do its work. The message is shown to the user."""


class ExplainingGroup(TyperGroup):
    """Prints failures that the user can act on to stderr and exits with 1; any other exception is a bug and keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the chosen command. The context's object is the Installation."""
        try:
            return super().invoke(ctx)
        except (CommandError, ServeError, ValueError, TimeoutError) as error:
            explanation = ctx.obj.explain(error)
            if explanation is None:
                raise
            print(explanation, file=sys.stderr)
            sys.exit(1)


def explain(error: Exception) -> str | None:
    """Describes the failure for the user. Returns None if the error is a bug."""
    match error:
        case ServeError():
            return _explain_serve_error(error)
        case CommandError() | TimeoutError():
            return f"Error: {error}"
    return None


def _explain_serve_error(error: ServeError) -> str:
    if UNREACHABLE in error.metadata:
        return (
            f"Error: no gateway answers at {error.metadata[UNREACHABLE]} ({error.message})\n"
            "  Start one with `neox-serve up`, or name another with --address HOST:PORT."
        )
    lines = [f"Error: {error}"]
    lines += [f"  {violation.field}: {violation.description}" for violation in error.violations]
    lines += [f"  {violation.subject}: {violation.description}" for violation in error.quota_violations]
    lines += [f"  {key}: {value}" for key, value in sorted(error.metadata.items())]
    if error.retry_after_s is not None:
        lines.append(f"  Try again in {error.retry_after_s:.1f} s.")
    return "\n".join(lines)
