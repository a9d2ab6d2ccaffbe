"""A hang: who is late, what every rank is doing, and the end of the attempt, which comes back if its budget allows."""

from __future__ import annotations

import contextlib
import faulthandler
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence

from hpctool.errors import EXIT_CONTINUE, HangError, listing
from hpctool.launch import closing, stacks
from hpctool.launch.watchdog import Beat, Watchdog, read_beat
from hpctool.rundir import RunDir

#: While the first of the ranks that stand still writes down what it found, the others wait for it so long.
_VERDICT_S = 30.0
#: Of a stack, the innermost call of the main thread, which faulthandler prints last.
_INNERMOST = re.compile(r"[Tt]hread 0x[^\n]*\n  File \"([^\"]+)\", line (\d+) in (\S+)")


def end_attempt(me: Watchdog, size: int) -> None:
    """End this process because its rank has stood still for too long; returns where it goes on after all."""
    began = me.here().marks
    # Not by the signal: this thread holds the interpreter's lock, so no stack changes while it is written down.
    with contextlib.suppress(OSError), open(me.rundir.stacks(me.rank), "a", encoding="utf-8") as file:
        faulthandler.dump_traceback(file, all_threads=True)
    beats, silent = _gathered(me, size)
    if me.is_dismissed or me.here().marks != began:
        return
    standing = [beat.rank for beat in beats.values() if beat.hung and beat.rank not in silent]
    if me.rank == min(standing, default=me.rank):
        cause, late = _found(me.rundir, beats, silent, size)
        closing.exit_now(closing.hung(me.rundir, cause, *_error_of(me, late, cause)))
    closing.exit_now(_verdict(me.rundir))


def silent_after_s(beat_every_s: float) -> float:
    """After how long without a beat a rank gives no sign of life."""
    return 2.5 * beat_every_s + 1.0


def _gathered(me: Watchdog, size: int) -> tuple[dict[int, Beat], list[int]]:
    """The beats of all ranks once each says that it stands still, and the ranks that give no sign any more."""
    patience_s = silent_after_s(me.beat_every_s)
    deadline_s = time.monotonic() + 2 * patience_s
    beats: dict[int, Beat] = {}
    changed_s = dict.fromkeys(range(size), time.monotonic())
    while True:
        me.beat(hung=True)
        for rank in range(size):
            found = read_beat(me.rundir.beat(rank))
            if found is not None and found != beats.get(rank):
                # The first look only says what was there.
                changed_s[rank] = time.monotonic() if rank in beats else changed_s[rank]
                beats[rank] = found
        silent = [rank for rank in range(size) if time.monotonic() - changed_s[rank] > patience_s]
        waiting = [rank for rank in range(size) if rank not in silent and not (rank in beats and beats[rank].hung)]
        if not waiting or time.monotonic() > deadline_s:
            return beats, silent
        time.sleep(min(0.5, me.beat_every_s / 2))


def _found(rundir: RunDir, beats: Mapping[int, Beat], silent: Sequence[int], size: int) -> tuple[str, list[int]]:
    """The cause in one sentence, the same for the same hang, and the ranks that are late."""
    processes = {one.rank: one for one in stacks.rank_processes(rundir, rundir.attempt)}
    problems = {}
    for rank in silent:
        if rank in processes and processes[rank].is_here:
            # Whoever holds the interpreter's lock answers all the same.
            [reply] = stacks.ask_here([processes[rank]], patience_s=2.0)
            problems[rank] = re.sub(r"^its process \d+ on \S+ ", "its process ", reply.problem)
    if silent:
        why = next((f": {problems[rank]}" for rank in silent if problems.get(rank)), "")
        others = [beat for rank, beat in sorted(beats.items()) if rank not in silent]
        where = f", the others wait in {others[0].words()}" if others else ""
        return f"hang: {_ranks(silent)} gives no sign of life{where}{why}", list(silent)
    fewest = min(beat.marks for beat in beats.values())
    late = [rank for rank, beat in beats.items() if beat.marks == fewest]
    if len(late) == size:
        late = _odd_ones(rundir, size)
    where = beats[late[0] if late else 0].words()
    if not late or size == 1:
        who = f"all {size} ranks stand in" if size > 1 else "it stands in"
        return f"hang: {who} {where}", late or [0]
    other = next(beat for rank, beat in sorted(beats.items()) if rank not in late)
    return f"hang: {_ranks(late)} stands in {where}, the others wait in {other.words()}", late


def _odd_ones(rundir: RunDir, size: int) -> list[int]:
    """Of ranks that have all passed the same marks, those whose innermost call is another than that of most."""
    calls = {rank: _innermost(_stack_text(rundir, rank)) for rank in range(size)}
    outside = [rank for rank, call in calls.items() if call and "/torch/" not in call]
    if 0 < len(outside) < size:
        return outside
    counts = Counter(calls.values())
    most, number = counts.most_common(1)[0]
    return [rank for rank, call in calls.items() if call != most] if number > size / 2 else []


def _stack_text(rundir: RunDir, rank: int) -> str:
    with contextlib.suppress(OSError):
        return rundir.stacks(rank).read_text(errors="replace").partition("\n")[2]
    return ""


def _innermost(text: str) -> str:
    found = _INNERMOST.findall(text)
    return " ".join(found[-1]) if found else ""


def _error_of(me: Watchdog, late: Sequence[int], cause: str) -> tuple[int, HangError, str]:
    """The late rank, its error, and what it was doing, for errors/<attempt>/<rank>.json."""
    limit_s = me.limit_s() or 0.0
    text = f"{cause[0].upper()}{cause[1:]}; the limit is {limit_s:.0f} s. Stacks of all ranks: hpctool runs stacks, "
    where = me.rundir.stacks(late[0]).parent.relative_to(me.rundir.path)
    return late[0], HangError(f"{text}{where}/*.stacks."), _stack_text(me.rundir, late[0])


def _verdict(rundir: RunDir) -> int:
    """The exit code that the rank which speaks for all has written down, or 75 where it cannot."""
    deadline_s = time.monotonic() + _VERDICT_S
    while time.monotonic() < deadline_s:
        with contextlib.suppress(OSError):
            if (code := closing.recorded_code(rundir)) is not None:
                return code
        time.sleep(0.2)
    return EXIT_CONTINUE


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {listing(map(str, ranks))}"
