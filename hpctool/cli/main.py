"""`hpctool`: jobs that are composed and can run anywhere, and verbs that are quick and run where you stand."""

from __future__ import annotations

import errno
import importlib
import os
import pkgutil
import sys
from pathlib import Path
from typing import Any

import click

from hpctool.errors import EXIT_FAILED, EXIT_INPUT, EXIT_INTERRUPTED, HpctoolError, nearest
from hpctool.files import FULL

# verb → its one line in `hpctool --help`; the module of the same name is imported when it is used
VERBS = {
    "data": "Versions of datasets: list, log, show, diff, relabel, verify …",
    "runs": "Runs: list, show, logs, compare, lineage, cancel, retry …",
    "sweep": "Sweeps and searches: list, status, watch, report, resume, retry, cancel, verify, export.",
    "models": "Exported models: list, show, verify, promote, rollback.",
    "chaos": "Rehearse failure on your own job, here: broken at random moments, it ends with the same bits.",
    "doctor": "What this cluster does to jobs, in plain words: signals, grace, limits, files.",
    "review": "What people should look at: queue, serve, label, apply, status.",
}


#: what the system says where one may not write
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)


class Lazy(click.Group):
    """A group that imports a command only when it is used, so that `--help` stays quick."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # `hpctool help train` asks what `hpctool train --help` does.
        return super().parse_args(ctx, [*args[1:], "--help"] if args[:1] == ["help"] else args)

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
    try:
        here = os.getcwd()
    except FileNotFoundError:
        was = os.environ.get("PWD", "the folder you stand in")
        click.echo(
            f"hpctool: {was} has been removed while you stand in it. Change to a folder that is there.", err=True
        )
        sys.exit(EXIT_INPUT)
    # A project's own classes lie in the folder one stands in; the console script's folder is not it.
    if "" not in sys.path and here not in sys.path:
        sys.path.insert(0, here)
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
        root = f" All of it is written below {Path(os.environ.get('HPCTOOL_ROOT', '')).absolute()}; "
        root += "HPCTOOL_ROOT=… chooses another folder."
        more = room if error.errno in FULL else root if error.errno in _CLOSED else ""
        where = os.path.abspath(error.filename) if isinstance(error.filename, str) else ""
        said = f"{error.strerror or error}: {where}".rstrip(": ")
        click.echo(f"hpctool: {said}{more and '.' + more}", err=True)
        code = EXIT_FAILED
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
