"""`hpctool <job> [key=value ...]`: the arguments of jobs, and what is said when they are submitted."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from hpctool.cli.output import print_json, say


class JobCommand(click.Command):
    """A command whose words after `--` are the arguments of somebody's own program, as they are."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            position = args.index("--")
            args, words = args[:position], args[position + 1 :]
            # In Hydra's grammar, where commas and brackets would mean something.
            args.append(f"args=[{','.join(map(_quoted, words))}]")
        return super().parse_args(ctx, args)


def _quoted(word: str) -> str:
    from hydra.core.override_parser.types import Quote, QuotedString

    from hpctool.errors import ConfigError

    if "${" in word or word == "???":
        raise ConfigError("args", f"'{word}' means something to the configuration, where arguments are kept.")
    return str(QuotedString(word, Quote.double).with_quotes())


def job_command(name: str, summary: str) -> click.Command:
    """The command of one job; its arguments are Hydra overrides."""

    @click.command(name, cls=JobCommand, short_help=summary, context_settings={"ignore_unknown_options": True})
    @click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]... [after=RUN|SWEEP]", type=click.UNPROCESSED)
    @click.option("-m", "--multirun", is_flag=True, help="Expand lists and ranges into a sweep of cells.")
    @click.option("--dry-run", is_flag=True, help="Print the resolved config and the script; submit nothing.")
    @click.option("--cfg", type=click.Choice(["job"]), metavar="job", help="Print the composed config and do nothing.")
    @click.option(
        "--config-dir", "config_dirs", multiple=True, type=click.Path(path_type=Path), help="Your conf folder."
    )
    @click.option("--config-name", default="", help="Your own primary config instead of the job's.")
    @click.option("--json", "as_json", is_flag=True, help="Print ids and folders as JSON on stdout.")
    def command(
        overrides: tuple[str, ...],
        multirun: bool,
        dry_run: bool,
        cfg: str | None,
        config_dirs: tuple[Path, ...],
        config_name: str,
        as_json: bool,
    ) -> None:
        from hpctool.launch import submit as runs

        searches = importlib.import_module("hpctool.search.submit") if asks_to_search(overrides) else None
        submit = searches or runs
        after = [one.removeprefix("after=") for one in overrides if one.startswith("after=")]
        if len(after) > 1 or "" in after:
            raise click.UsageError("after= takes one run or sweep.")
        rest = [one for one in overrides if not one.startswith("after=")]
        request = runs.Request(name, rest, list(config_dirs), config_name, "".join(after))
        if cfg:
            click.echo(runs.show_config(request), nl=False)
        elif dry_run:
            click.echo(submit.dry_run(request, multirun), nl=False)
        else:
            # With --json an inline job's own words are talk too: stdout is data.
            with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
                submission = submit.submit(request, multirun, say=say)
            if as_json:
                print_json(submission.to_json())
            if submission.exit_code:
                raise SystemExit(submission.exit_code)

    command.help = _docstring(name)
    return command


def asks_to_search(overrides: Sequence[str]) -> bool:
    """Whether what was typed asks for a search: `search=…` or any key of it."""
    return any(text.lstrip("+").startswith(("search=", "search.")) for text in overrides)


def _docstring(name: str) -> str:
    """The job module's docstring as it stands there: it opens with commands (\\b keeps its lines)."""
    import ast

    import hpctool.jobs

    source = Path(hpctool.jobs.__path__[0]) / f"{name}.py"
    text = ast.get_docstring(ast.parse(source.read_text())) or ""
    return "\n\n".join("\b\n" + block for block in text.split("\n\n"))
