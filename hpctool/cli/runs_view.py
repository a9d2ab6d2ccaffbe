"""How runs look in a terminal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hpctool.cli.output import cell_text, distinct_texts, say
from hpctool.cli.tables import (
    Column,
    age_text,
    print_columns,
    print_whole,
    settings_text,
    state_text,
)
from hpctool.errors import size_text
from hpctool.launch.progress import duration_text
from hpctool.rundir import STATES
from hpctool.track.compare import Comparison, differing, is_measured, telling_metrics
from hpctool.track.hours import Hours
from hpctool.track.metrics import from_json
from hpctool.track.row import BROKEN, Row

_NUM_METRICS = 3
_NUM_ARTIFACTS = 20
_SHORT_HEX = 12


# ---------------------------------------------------------------------------------------------- list


def print_list(rows: Sequence[Row], num_found: int, wanted: Sequence[str], sort: str, by_sweep: bool) -> None:
    """Print runs as a table: what differs between the cells of a sweep, the most telling metrics, how old."""
    columns = [Column("id", [row.id for row in rows]), Column("state", [state_text(row.state) for row in rows])]
    if wanted:
        columns += [Column(name, [row.value(name) for row in rows]) for name in wanted if name not in ("id", "state")]
    else:
        columns[1:1] = [Column("job", [row.job for row in rows], rank=1)]
        columns += list(_usual_columns(rows, sort, by_sweep))
    gone = print_columns(columns)
    counts = Counter(row.state for row in rows)
    states = ", ".join(f"{counts[state]} {state}" for state in (*STATES, BROKEN) if counts[state])
    more = f" of {num_found}" if num_found > len(rows) else ""
    say(f"\n{len(rows)}{more} run{'s' if max(num_found, len(rows)) != 1 else ''}{': ' if states else ''}{states}")
    if gone:
        say(f"No room here for {', '.join(gone)}; a wider terminal or --cols shows them.")


def _usual_columns(rows: Sequence[Row], sort: str, by_sweep: bool) -> Iterable[Column]:
    told = {job: _differing_keys([row for row in rows if row.job == job]) for job in {row.job for row in rows}}
    keys = list(dict.fromkeys(key for row in rows for key in told[row.job]))
    known = telling_metrics([row.metrics for row in rows])
    metrics = [name for name in known if name != sort and not is_measured(name)]
    if sort in known:
        metrics.insert(0, sort)
    elif sort not in ("", "id", "state", "job", "step", "cause", *(keys if by_sweep else ())):
        yield Column(sort, [row.value(sort) for row in rows])
    if by_sweep:
        yield from (Column(key, [row.changed.get(key) for row in rows], is_exact=True) for key in keys)
    yield Column("step", [row.step or None for row in rows])
    for index, name in enumerate(metrics[:_NUM_METRICS]):
        yield Column(name, [row.metrics.get(name) for row in rows], rank=3 + index if index else 0)
    yield Column("age", [age_text(row.created) for row in rows], style="dim")
    if any(row.cause for row in rows):
        yield Column("cause", [_one_line(row.cause) for row in rows], rank=2, min_width=12)
    if keys and not by_sweep:
        texts = [settings_text({k: v for k, v in row.changed.items() if k in told[row.job]}) for row in rows]
        yield Column("changed", texts, rank=3, min_width=12, style="dim")


def _differing_keys(rows: Sequence[Row]) -> list[str]:
    """The changed keys that tell the rows of one job apart; all of them where there is one row."""
    sides = [row.changed for row in rows]
    found = differing(sides) if len(sides) > 1 else sides[0]
    return [key for key in dict.fromkeys(key for side in sides for key in side) if key in found]


def _one_line(text: str) -> str:
    return " ".join(text.split())


# ---------------------------------------------------------------------------------------------- show


def print_run(found: dict[str, Any]) -> None:
    """Print everything about one run."""
    head = Text.assemble((found["id"], "bold"), "  ", state_text(found["state"]))
    if found["cause"]:
        head.append(f"  {_one_line(found['cause'])}")
    print_whole(head)
    print_whole(_facts(found))
    _print_history(found["history"])
    _print_metrics(found["summary"], found["metrics"])
    _print_checkpoints(found["checkpoints"])
    _print_artifacts(found["artifacts"])
    if found["failure"] and found["state"] in ("failed", "requeued"):
        _print_failure(found["failure"])
    print_whole(_section("paths", _grid((name, Text(path)) for name, path in found["paths"].items())))


def _facts(found: dict[str, Any]) -> Padding:
    sweep = f", cell {found['cell']} of sweep {found['sweep']}" if found["sweep"] else ""
    code, slurm = found["code"], found["slurm_job_id"]
    facts: list[tuple[str, object]] = [
        ("job", f"{found['job']}{sweep}"),
        ("created", f"{age_text(found['created'])} ago by {found['by']}, {found['created']}"),
        ("where", f"{found['where']}{f', job {slurm}' if slurm else ''}" if found["where"] else None),
        ("answers at", found["url"]),
        ("step", _how_far(found)),
        ("changed", "\n".join(f"{key} = {cell_text(value)}" for key, value in found["changed"].items())),
        ("goes on from", _origin(found["continues"])),
        ("inputs", "\n".join("  ".join(dict.fromkeys([one["name"], short_id(one["id"])])) for one in found["inputs"])),
        ("data", (found["data_commit"] or "")[:_SHORT_HEX] if not found["inputs"] else None),
        ("code", code_text(code)),
        ("cost", _cost(found["hours"])),
        ("idle", f"{', '.join(found['idle'])}: asked for and not used" if found["idle"] else None),
        ("parameters", (found["param_digest"] or "")[:_SHORT_HEX]),
        ("outputs", "\n".join(f"{key} = {_plain(value)}" for key, value in found["outputs"].items() if value)),
    ]
    return Padding(_grid((name, Text(cell_text(value))) for name, value in facts if value), (1, 0, 0, 2), expand=False)


def _plain(value: object) -> str:
    """What a job has given back as words: `train 1,108, val 165` for a mapping, what a list has with commas."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(one)}" for key, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    is_count = isinstance(value, int) and not isinstance(value, bool)
    return f"{value:,}" if is_count else short_id(cell_text(value))


def _origin(continues: dict[str, Any] | None) -> str:
    """The run and step it began with, and what was changed since: one line for each key."""
    if continues is None:
        return ""
    changed = [f"{key}: {' → '.join(distinct_texts(both))}" for key, both in continues["changed"].items()]
    return "\n".join([f"{continues['run']} at step {continues['step']}", *changed])


def _how_far(found: dict[str, Any]) -> str:
    step, most, left_s = found["step"], found["max_steps"], found["eta_s"]
    left = "" if left_s is None else f", about {duration_text(left_s)} to go"
    return f"{step} of {most}{left}" if most and step != most else str(step or "")


def _cost(hours: dict[str, Any] | None) -> str:
    from hpctool.cli.sweep_view import hours_text

    return hours_text(Hours.from_json(hours)) if hours else ""


def code_text(code: dict[str, Any]) -> str:
    """`9f2c1e0a4b5c with uncommitted changes`, or what there is in place of a commit."""
    commit = str(code.get("commit") or "")[:_SHORT_HEX]
    snapshot = f"snapshot {code['snapshot']}" if code.get("snapshot") else ""
    dirty = " with uncommitted changes" if code.get("dirty") else ""
    return ", ".join(part for part in (f"{commit}{dirty}" if commit else "", snapshot) if part)


def _print_history(history: list[dict[str, Any]]) -> None:
    if not history:
        return
    print_whole("")
    columns = [
        Column("attempt", [one["number"] for one in history]),
        Column("state", [state_text(one["state"]) for one in history]),
        Column("from step", [one["from_step"] for one in history]),
        Column("to step", [one["to_step"] for one in history]),
        Column("took", [duration_text(one["duration_s"]) for one in history]),
        Column("ranks", [one["world_size"] for one in history], rank=2),
        Column("nodes", [", ".join(map(str, one["nodes"])) for one in history], rank=1, min_width=8),
        Column("cause", [_one_line(one["cause"]) for one in history], min_width=12),
    ]
    print_columns([column for column in columns if column.width > len(column.name) or any(column.cells)])


def _print_metrics(summary: dict[str, dict[str, Any]], final: dict[str, Any]) -> None:
    names = telling_metrics([summary, final])
    if not names:
        return
    print_whole("")

    def side(key: str) -> list[Any]:
        values = [summary.get(name, {}).get(key) for name in names]
        return [value if value is None or isinstance(value, int) else from_json(value) for value in values]

    columns = [Column("metric", names), Column("last", side("last"))]
    if any(name not in summary or final[name] != summary[name]["last"] for name in final):
        values = [None if name not in final else from_json(final[name]) for name in names]
        columns.append(Column("result", values))
    for key in ("min", "max"):
        columns += [Column(key, side(key)), Column("at step", side(f"{key}_step"), style="dim")]
    print_columns(columns)


def _print_checkpoints(checkpoints: list[dict[str, Any]]) -> None:
    kept = [one for one in checkpoints if one["size_bytes"] is not None]
    if not checkpoints:
        return
    rows = [(f"step {one['step']}", Text(f"{one['path']}  {size_text(one['size_bytes'])}")) for one in kept]
    print_whole(_section(f"checkpoints: {len(checkpoints)} committed, {len(kept)} kept", _grid(rows)))


def _print_artifacts(artifacts: list[dict[str, Any]]) -> None:
    if not artifacts:
        return
    more = f", the first {_NUM_ARTIFACTS} of them" if len(artifacts) > _NUM_ARTIFACTS else ""
    rows = [(one["name"], Text(size_text(one["size_bytes"]))) for one in artifacts[:_NUM_ARTIFACTS]]
    print_whole(_section(f"artifacts: {len(artifacts)} file{'s' if len(artifacts) > 1 else ''}{more}", _grid(rows)))


def _print_failure(failure: dict[str, Any]) -> None:
    others = failure["num_ranks_failed"] - 1
    also = f"; {others} more rank{'s' if others > 1 else ''} failed after it" if others > 0 else ""
    where = f"attempt {failure['attempt']}, rank {failure['rank']} on {failure['host']}, step {failure['step']}{also}"
    trace = Text(failure["traceback"].rstrip(), "dim")
    print_whole(_section(f"failed in {where}", trace, style="bold red"))


def _section(title: str, body: Any, style: str = "bold") -> Group:
    return Group(Text(f"\n{title}", style), Padding(body, (0, 0, 0, 2), expand=False))


def _grid(rows: Iterable[tuple[str, object]]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)  # type: ignore[arg-type]
    return table


# ---------------------------------------------------------------------------------------------- compare


_SIDES = ("config", "data", "code", "environment", "hardware")


def print_comparison(found: Comparison) -> None:
    """Print runs side by side, one column each, only what differs."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", overflow="fold", no_wrap=True)
    for run_id in found.ids:
        table.add_column(run_id, overflow="fold", justify="right")
    table.add_row("state", *(state_text(state) for state in found.states))
    for title in _SIDES:
        _add_section(table, title, getattr(found, title))
    _add_section(table, "metrics", {name: found.metrics[name] for name in telling_metrics([found.metrics])})
    print_whole(table)
    unknown = ["environment"] if found.no_environment else []
    alike = [title for title in _SIDES if not getattr(found, title) and title not in unknown]
    print_whole(Text(f"\nThe same: {', '.join(alike)}." if alike else ""))
    if found.no_environment:
        print_whole(Text(f"The environment was not recorded for {', '.join(found.no_environment)}."))
    for sentence in _verdict(found):
        print_whole(Text(sentence))
    for group in found.seeds:
        names = [name for name in telling_metrics([group.metrics]) if not is_measured(name)][:_NUM_METRICS]
        told = ", ".join(f"{name} {spread_text(*group.metrics[name])}" for name in names)
        print_whole(Text(f"{len(group.ids)} seeds ({', '.join(group.ids)}): {told or 'no metric in common'}"))


def spread_text(mean: float, sd: float) -> str:
    """`0.9312 ± 0.0021`: a mean with as many places as its standard deviation has two figures for."""
    if not (math.isfinite(mean) and math.isfinite(sd)):
        return f"{mean:.4g} ± {sd:.2g}"
    places = max(0, 1 - math.floor(math.log10(sd))) if sd > 0 else 4
    return f"{mean:.{places}f} ± {sd:.{places}f}"


def _add_section(table: Table, title: str, rows: Mapping[str, Sequence[object]]) -> None:
    if rows:
        table.add_section()
        table.add_row(Text(title, "bold"))
    for key, values in rows.items():
        table.add_row(f"  {key}", *(Text(short_id(text)) for text in distinct_texts(values)))


def short_id(text: str) -> str:
    """Twelve digits of a digest or commit, which tell them apart; any other name as it is."""
    return text[:_SHORT_HEX] if len(text) >= 40 and set(text) <= set("0123456789abcdef") else text


def _verdict(found: Comparison) -> Iterable[str]:
    parting = found.parting
    if parting is not None and parting.step is not None and parting.values is not None:
        ours, theirs = parting.values
        yield f"They part at step {parting.step}: {parting.metric} is {ours!r} and {theirs!r}."
    elif parting is not None and parting.num_steps:
        yield f"Their metrics are the same to the last bit at all {parting.num_steps} steps that both logged."
    elif parting is not None:
        yield "They have logged no metric at the same step."
    digests = list(dict.fromkeys(short_id(digest) for digest in found.digests if digest))
    if None not in found.digests:
        same = "bit-identical" if len(digests) == 1 else "different"
        yield f"Their parameters are {same} ({', '.join(digests)})."
