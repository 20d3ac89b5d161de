"""The command line. Commands import their modules when they run, so --help answers at once.

Exit codes: 0 done, also if the analysis refuses a verdict; 1 some trials failed, or the analysis
refuses with --require-verdict; 2 bad input, with one message and no traceback; 130 Ctrl-C.
"""

import logging
import sys

import _widthlab

_widthlab.require_packages("orchestrator")

import typer

from orchestrator.cli.jobs import submit
from orchestrator.cli.output import INTERRUPTED
from orchestrator.cli.results import analyze, export, fit, sync, ui
from orchestrator.cli.sweeps import gc, plan, rerun, run, status, stop
from trialstore.errors import InputError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # the boxes of rich show `<bool>` behind every flag
    help="How wide should the feed-forward network be? Train a grid, fit its laws, get a verdict.",
)
for command in (plan, run, submit, status, stop, rerun, gc, analyze, fit, sync, export, ui):
    app.command()(command)


def _os_error(error: OSError) -> str:
    """Return the error of the operating system, with the file that it is about."""
    what = error.strerror or str(error) or type(error).__name__
    return what if error.filename is None else f"{str(error.filename)[:200]}: {what}"


def main() -> None:
    """Run the command `widthlab`. Exits with one of the codes above."""
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(message)s"
    )
    try:
        app()
    except InputError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None
    except OSError as error:  # a full disk, a path that is too long, a missing permission
        typer.echo(f"error: {_os_error(error)}", err=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None


if __name__ == "__main__":
    main()
