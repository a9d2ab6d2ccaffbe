"""Telling somebody that a run or a sweep has ended, failed or stalled: by a command, a webhook or mail, as was asked.

Nothing is told unless it is asked for. What cannot be told is said on stderr, and changes nothing about the run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from typing import Any

from hpctool import config
from hpctool.rundir import OVER, RunDir, who

#: a run that is being stopped has little time, and a tracker that hangs must not use it up
TIMEOUT_S = 10.0
#: the words for what may be told
KINDS = (*OVER, "stalled")


def tell(rundir: RunDir, state: str, cause: str) -> None:
    """Tell the end of an attempt to whom `cluster.alert` names, if it is one of `when`. Never raises.

    Of a sweep each cell that fails or stalls is told, and then once how the whole ended; of a search not its trials.
    """
    try:
        asked = config.load(rundir.config_yaml).cluster.get("alert") or {}
        when = asked.get("when") or ()
        if not any(asked.get(key) for key in ("command", "webhook", "mail")):
            return
        story = rundir.story()
        if story.state == "cancelled":  # of which a rank that was told to stop need not know
            state, cause = story.state, story.cause
        # A hang comes back; it is told because somebody may want to look.
        kind = "stalled" if cause.startswith("hang") else state
        record = rundir.record()
        is_trial = record.get("trial") is not None
        alone = {"stalled"} if is_trial else {"stalled", "failed"} if record.get("sweep") else set(KINDS)
        if kind in when and kind in alone:
            facts = {"run": rundir.id, "state": kind, "cause": cause, "folder": str(rundir.path), "by": who()}
            _tell_all(asked, facts)
        if record.get("sweep") and not is_trial and state in OVER:
            from hpctool.launch import sweepend

            end = sweepend.ended(rundir.path.parent, str(record["sweep"]))
            if end is not None and end.state in when:
                facts = {"run": end.id, "state": end.state, "cause": end.text, "folder": end.folder, "by": who()}
                _tell_all(asked, facts)
    except Exception as error:  # whatever it is: the run's own end counts
        _say(f"it could not be told how this run ended: {error}")


def _tell_all(asked: Mapping[str, Any], facts: Mapping[str, str]) -> None:
    text = f"{facts['run']} {facts['state']}{': ' if facts['cause'] else ''}{facts['cause']}"
    for key, how in (("command", _command), ("webhook", _webhook), ("mail", _mail)):
        if to := asked.get(key):
            try:
                how(to, text, facts)
            except (OSError, ValueError, subprocess.SubprocessError) as error:
                _say(f"cluster.alert.{key} failed: {error}")


def _command(to: Any, _text: str, facts: Mapping[str, str]) -> None:
    """The facts are in its environment, so that no text of ours is ever read as part of a command."""
    env = os.environ | {f"HPCTOOL_ALERT_{name.upper()}": value for name, value in facts.items()}
    subprocess.run([str(word) for word in to], env=env, stdin=subprocess.DEVNULL, timeout=TIMEOUT_S, check=True)


def _webhook(to: Any, text: str, facts: Mapping[str, str]) -> None:
    """A POST of JSON, whose `text` is what chat services show."""
    if not str(to).startswith(("https://", "http://")):
        raise ValueError(f"'{to}' is no http address")
    body = json.dumps({"text": text, **facts}).encode()
    asked = urllib.request.Request(str(to), body, {"Content-Type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(asked, timeout=TIMEOUT_S):  # noqa: S310
        pass


def _mail(to: Any, text: str, facts: Mapping[str, str]) -> None:
    """By the host's sendmail, which every mail system has under this name."""
    subject = " ".join(f"hpctool: {facts['run']} {facts['state']}".split())
    told = "\n".join(f"{name}: {value}" for name, value in facts.items())
    message = f"To: {to}\nSubject: {subject}\n\n{text}\n\n{told}\n"
    subprocess.run(["sendmail", "-t"], input=message.encode(), timeout=TIMEOUT_S, check=True)


def _say(text: str) -> None:
    print(f"hpctool: {text}", file=sys.stderr, flush=True)
