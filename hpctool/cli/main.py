"""`hpctool`: jobs that are composed and can run anywhere, and verbs that are quick and run where you stand."""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from typing import Any

import click

from hpctool.errors import EXIT_FAILED, EXIT_INPUT, EXIT_INTERRUPTED, HpctoolError, nearest
from hpctool.files import FULL

# verb → its one line in `hpctool --help`; the module of the same name is imported when it is used
VERBS = {
    "data": "Versions of datasets: list, log, show, diff, relabel, verify …",
    "runs": "Runs: list, show, logs, compare, lineage, cancel, retry …",
    "sweep": "Sweeps and searches: list, status, report, resume, retry, cancel, verify, export.",
    "models": "Exported models: list, show, verify, promote, rollback.",
    "chaos": "Rehearse failure on your own job, here: broken at random moments, it ends with the same bits.",
    "doctor": "What this cluster does to jobs, in plain words: signals, grace, limits, files.",
    "review": "What people should look at: queue, serve, label, apply, status.",
}


class Lazy(click.Group):
    """A group that imports a command only when it is used, so that `--help` stays quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*job_summaries(), *VERBS]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in VERBS:
            module = importlib.import_module(f"hpctool.cli.{name}")
            # Most verbs are groups; a few are one command.
            command: click.Command = getattr(module, "group", None) or module.command
            return command
        if name in job_summaries():
            from hpctool.cli.jobs import job_command

            return job_command(name, job_summaries()[name])
        return None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if self.get_command(ctx, args[0]) is None:
            near = nearest(args[0], self.list_commands(ctx))
            guess = f" Did you mean {' or '.join(near)}?" if near else ""
            raise click.UsageError(f"There is no command '{args[0]}'.{guess} See hpctool --help.", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Jobs: hpctool <job> [key=value ...] [-m] [--dry-run]"):
            formatter.write_dl(list(job_summaries().items()))
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


def job_summaries() -> dict[str, str]:
    """Each job and the first line of its docstring, read from the source: no job is imported."""
    import ast
    from pathlib import Path

    import hpctool.jobs

    summaries = {}
    for module in pkgutil.iter_modules(hpctool.jobs.__path__):
        source = Path(hpctool.jobs.__path__[0]) / f"{module.name}.py"
        text = ast.get_docstring(ast.parse(source.read_text())) or ""
        summaries[module.name] = text.splitlines()[0] if text else ""
    return summaries


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hpctool", prog_name="hpctool")
def cli() -> None:
    """One deep learning lifecycle on plain files and Slurm."""


def main() -> None:
    """The console script: errors become one sentence and an exit code (0, 1, 2, 75, 130)."""
    # A project's own classes lie in the folder one stands in; the console script's folder is not it.
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        code = EXIT_INTERRUPTED
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except click.ClickException as error:
        error.show()
        code = EXIT_INPUT
    except HpctoolError as error:
        click.echo(f"hpctool: {error}", err=True)
        code = error.exit_code
    except BrokenPipeError:
        # `hpctool runs list | head`: the reader has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_FAILED
    except OSError as error:
        room = " Make room there (what datasets need no more: hpctool data gc), and try again."
        said = f"{error.strerror or error}: {error.filename or ''}".rstrip(": ")
        click.echo(f"hpctool: {said}{'.' + room if error.errno in FULL else ''}", err=True)
        code = EXIT_FAILED
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
