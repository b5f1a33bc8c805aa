"""What the command says when something fails, and how it exits: 1 for failures, 2 for wrong usage (typer's own), 130 after Ctrl-C."""

import sys
from typing import Any

from typer.core import TyperGroup

from neox_serve.core.errors import ServeError

UNREACHABLE = "unreachable"
"""The key that the client sets in the metadata of errors that never came from the service."""


class CommandError(Exception):
    """A command cannot do what it was asked; the message is for people."""


class ExplainingGroup(TyperGroup):
    """Ends a command whose failure can be explained with that on stderr and exit code 1; other failures are bugs and keep their trace."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command that was chosen."""
        try:
            return super().invoke(ctx)
        except (CommandError, ServeError, ValueError, TimeoutError) as error:
            explanation = explain(error)
            if explanation is None:
                raise
            print(explanation, file=sys.stderr)
            sys.exit(1)


def explain(error: Exception) -> str | None:
    """The failure in words; None where it is not a failure that users should see so."""
    match error:
        case ServeError():
            return _explain_serve_error(error)
        case CommandError() | TimeoutError():
            return f"Error: {error}"
    from neox_serve.settings import SettingsError

    return f"Error in the settings:\n{error}" if isinstance(error, SettingsError) else None


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
