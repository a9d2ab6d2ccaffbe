"""The second half of the loop: serve, watch, review, relabel, retrain, gate, promote, and one number's way back."""

from __future__ import annotations

import csv
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hpctool.data.version import Version, open_version
from hpctool.errors import OperationError, UnknownName
from hpctool.export import aliases
from hpctool.flywheel.first_half import publish
from hpctool.flywheel.story import Refused, Story
from hpctool.flywheel.traffic import Client, Images, Sent, answered, request_ids, row_of, send
from hpctool.flywheel.worn import wear
from hpctool.review.queue import open_queue
from hpctool.serve.journal import open_journal

CLEAN, WORN = "clean", "worn"
#: The rehearsal's annotator, wherever labels are counted: it answers from the known truth, which no person has.
ORACLE = "oracle"

_PATIENCE_S = 90.0


def serve(story: Story) -> None:
    """A server that follows the alias, in the background; the production split is sent to it, clean and then worn."""
    model = f"{story.name}@production"
    told = ("serve", f"name=serve-{story.name}", f"serve.model={model}", "serve.port=0", "cluster=local")
    story.facts["server"] = story.hpctool(*told)["runs"][0]
    client = story.facts["client"] = Client(story.run(story.facts["server"]).path / "artifacts" / "endpoint.json")
    metadata = client.metadata()
    story.say(f"  {story.name} answers, version {metadata['versions'][0]}")
    version = open_version(story.folder("datasets"), f"{story.name}@v1")
    copies = {CLEAN: 1, WORN: story.cfg.flywheel.rehearsal.worn_copies}
    told_rows = []
    for source, num_copies in copies.items():
        images, ids = _requests(story, version, source, num_copies)
        done = answered(_journal(story), source)
        sent = send(client, images, ids, source, done)
        _wait_for(
            lambda source=source, ids=ids: answered(_journal(story), source) >= set(ids),  # type: ignore[misc]
            f"the journal lacks answers to {source} requests",
        )
        told_rows.append([source, str(len(ids)), str(len(done)), str(sent.rows)])
    story.table(["source", "requests", "answered before", "sent now"], told_rows)
    total = sum(int(row[1]) for row in told_rows)
    story.reached(f"{total} requests answered over HTTP, all in the journal", _journal(story))


def score(story: Story) -> None:
    """The same bundle over the whole dataset version, offline, into a journal of the same form."""
    version = f"{story.name}@{story.facts['version']}"
    answer = story.hpctool("score", f"data.name={story.name}@v1", f"score.model={version}", "score.source=offline")
    rows = story.metrics(answer["runs"][0])
    story.reached(", ".join(f"{name} {value:g}" for name, value in rows.items()), story.run(answer["runs"][0]).path)


def monitor(story: Story) -> None:
    """No alarm on what is as it was, an alarm on what has changed."""
    model = f"{story.name}@{story.facts['version']}"
    if story.remembered("last_entry") is None:
        story.remember("last_entry", open_journal(story.folder("journals"), story.name).newest_entry())
    # The journal has grown where the loop is started again; what was asked of it then is asked again.
    until = f"monitor.last_entry={story.remembered('last_entry')}"
    for source, expected in ((CLEAN, 0), (WORN, 1)):
        run = story.hpctool("monitor", f"monitor.model={model}", f"monitor.source={source}", until)["runs"][0]
        result = story.run(run).result() or {}
        alarm = int(result["metrics"]["monitor/alarm"])
        if alarm != expected:
            raise OperationError(f"The monitor says alarm={alarm} on {source} data; look at hpctool runs show {run}")
        estimate = result["metrics"]["monitor/estimated_accuracy"]
        word = "ALARM" if alarm else "no alarm"
        story.reached(
            f"{source}: {word}, estimated accuracy {estimate:.3f}", story.run(run).path / "artifacts/report.html"
        )


def review(story: Story) -> None:
    """The predictions that are worth a person's time, labelled by the oracle, become the dataset's next version."""
    told = story.cfg.flywheel
    review_id = story.remembered("review")
    if review_id is None:
        model = f"{story.name}@{story.facts['version']}"
        chosen = ("--uncertain", str(told.num_uncertain), "--audit", str(told.num_audit))
        onto = ("--source", WORN, "--dataset", f"{story.name}@main")
        review_id = story.hpctool("review", "queue", model, *chosen, *onto)["review"]
    answers = story.artifact("oracle.csv")
    _answer(story, review_id, answers)
    story.hpctool("review", "label", review_id, "--from", str(answers), "--who", ORACLE)
    why = f"rows of the worn scanner, reviewed in {review_id}"
    applied = story.hpctool("review", "apply", review_id, "--tag", "v2", "--split", "train", "-m", why)
    story.remember("review", review_id)
    status = story.hpctool("review", "status", review_id, quiet=True)
    audit = status["audit"]
    story.say(f"  on {audit['num_items']} random rows the model was right in {audit['num_right']}")
    authors = story.hpctool("data", "authors", f"{story.name}@v2", quiet=True)
    counts = ", ".join(f"{author} {number}" for author, number in authors.items())
    story.reached(
        f"{story.name}@v2 = {applied['commit'][:12]}; labels by {counts}", story.folder("reviews") / review_id
    )


def retrain(story: Story) -> None:
    """The same configuration on v2; old and new are measured on clean and on worn test data; an export."""
    new = story.train("name=retrained", f"data.name={story.name}@v2", *story.facts["chosen"])
    story.facts["run_new"] = new
    _prepare_worn(story)
    for key, run, data in (
        ("worn_old", story.facts["run"], f"{story.name}_worn"),
        ("clean_new", new, f"{story.name}@v1"),
        ("worn_new", new, f"{story.name}_worn"),
    ):
        answer = story.hpctool("evaluate", f"run={run}", f"data.name={data}", "data.split=test", f"name=evaluate-{key}")
        story.facts[key] = answer["runs"][0]
    story.facts["version_new"] = publish(story, new)
    story.reached(f"trained on v2, exported as {story.name}@{story.facts['version_new']}", story.run(new).path)


def gate(story: Story) -> None:
    """Not worse on clean data beyond chance, overall and per class; better on worn data; then it may be promoted."""
    pairs = [f"gate.{kind}={story.facts[key]}" for kind, key in GATE_PAIRS.items()]
    answer = story.hpctool("gate", *pairs, f"gate.alpha={story.cfg.flywheel.alpha}")
    story.facts["gate"] = answer["runs"][0]
    accuracy = {key: story.metrics(story.facts[key])["test/accuracy"] for key in GATE_PAIRS.values()}
    rows = []
    for kind, pair in ((CLEAN, ("clean_old", "clean_new")), (WORN, ("worn_old", "worn_new"))):
        was, now = (accuracy[key] for key in pair)
        rows.append([kind, f"{was:.4f}", f"{now:.4f}", f"{now - was:+.4f}"])
    story.table(["test data", "before", "after", "gain"], rows, title="Accuracy")
    for kind, before, after, gain in rows:
        story.reached(f"{kind}: accuracy {before} → {after} ({gain})", story.run(story.facts["gate"]).path)


def promote(story: Story) -> None:
    """The alias moves; the running server tests the new version and switches, and answers everybody meanwhile."""
    new = story.facts["version_new"]
    in_use = aliases.current(story.folder("models"), story.name, "production")
    if in_use is None or in_use.version != new:
        with _Asking(story) as asking:
            why = f"gate {story.facts['gate']}"
            story.hpctool("models", "promote", f"{story.name}@{new}", "--as", "production", "-m", why)
            asking.until_version(new)
        counts = ", ".join(f"{number} by {version}" for version, number in asking.sent.by_version.items())
        story.reached(f"production is {new}; {asking.sent.rows} requests during the switch: {counts}, 0 failed")
        prediction = next(reversed(asking.sent.prediction_ids.values()))
        _wait_for(lambda: _is_written(story, prediction), f"the journal does not hold prediction {prediction}")
        story.remember("prediction", prediction)
    else:
        story.reached(f"production is {new} already")


def lineage(story: Story) -> None:
    """Where one answer came from: bundle, run, code, config, data, and who set its labels."""
    prediction = story.remembered("prediction")
    if prediction is None:
        found = open_journal(story.folder("journals"), story.name).read(source=CLEAN, columns=[])
        prediction = found.ids[-1]
    story.say(f"[bold cyan]$ hpctool runs lineage {prediction}[/]")
    sys.stdout.flush()
    command = [sys.executable, "-m", "hpctool.cli.main", "runs", "lineage", prediction]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise Refused("hpctool runs lineage", done.returncode)
    story.say(done.stdout.rstrip().replace("[", "\\["))
    story.reached(f"prediction {prediction} → bundle → run → code, config → data → authors")


def stop_server(story: Story) -> None:
    """End the background server, unless it is to stay."""
    if story.cfg.flywheel.keep_server:
        story.reached(f"still serving: hpctool runs cancel {story.facts['server']} ends it")
        return
    command = [sys.executable, "-m", "hpctool.cli.main", "runs", "cancel", story.facts["server"]]
    story.say(f"[bold cyan]$ hpctool runs cancel {story.facts['server']}[/]")
    sys.stdout.flush()
    subprocess.run(command, check=False)
    story.reached("the server is told to stop")


#: What the gate compares: its key → the fact that holds the evaluation.
GATE_PAIRS = {"keep_old": "clean_old", "keep_new": "clean_new", "improve_old": "worn_old", "improve_new": "worn_new"}


class _Asking:
    """Somebody who asks all the time, one clean row after the other, while the model is changed."""

    def __init__(self, story: Story) -> None:
        version = open_version(story.folder("datasets"), f"{story.name}@v1")
        self.images, self.ids = _requests(story, version, CLEAN, 1)
        self.client = Client(story.facts["client"].path)
        self.sent = Sent()
        self.error: Exception | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)

    def __enter__(self) -> _Asking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self.error is not None:
            raise self.error

    def until_version(self, version: str) -> None:
        """Wait until the new version has answered some requests. Raises OperationError."""
        _wait_for(
            lambda: self.sent.by_version.get(version, 0) >= 20 or self.error is not None,
            f"the server has not switched to {version}",
        )

    def _ask(self) -> None:
        number = 0
        try:
            while not self._stop.is_set():
                place = number % len(self.ids)
                answer = self.client.infer(self.images[place : place + 1], [f"switch:{number}:0"], "switch")
                self.sent.add(f"switch:{number}:0", answer)
                number += 1
        except Exception as error:
            self.error = error


def _requests(story: Story, version: Version, source: str, copies: int) -> tuple[Images, list[str]]:
    """The images of the production split, as often as they are sent, and the requests' ids."""
    rows = version.split_rows("production")
    uids, feature = version.uids(rows), version.features[0]
    images = version.read(feature, rows)
    ids = request_ids(source, uids, copies)
    if source == CLEAN:
        return images, ids
    repeated = np.concatenate([images] * copies)
    return wear(repeated, ids, story.cfg.flywheel.rehearsal.seed), ids


def _prepare_worn(story: Story) -> None:
    """The test split as the worn scanner delivers it, as a dataset of its own: nothing is trained on it."""
    arguments = {"datasets": story.folder("datasets").absolute(), "name": f"{story.name}@v1", "split": "test"}
    arguments["seed"] = story.cfg.flywheel.rehearsal.seed + 1
    source = [f"+source.{key}={value}" for key, value in arguments.items()]
    splits = "data.splits={train: 0.0, val: 0.0, test: 1.0, production: 0.0}"
    reader = "source._target_=hpctool.flywheel.worn.WornRows"
    story.hpctool("prepare", f"data.name={story.name}_worn", "source=own", reader, *source, splits)


def _answer(story: Story, review_id: str, path: Path) -> None:
    """Write the oracle's answers: the labels that the rows had before they were worn."""
    queue = open_queue(story.folder("reviews"), review_id)
    version = open_version(story.folder("datasets"), f"{story.name}@v1")
    uids = [row_of(item.request)[1] for item in queue.items]
    labels = version.read("label", version.find(uids))
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["item", "label"])
        table.writerows(
            (item.prediction, version.classes[label]) for item, label in zip(queue.items, labels, strict=True)
        )


def _journal(story: Story) -> Path:
    return story.folder("journals") / story.name


def _is_written(story: Story, prediction: str) -> bool:
    try:
        open_journal(story.folder("journals"), story.name).find(prediction)
    except UnknownName:
        return False
    return True


def _wait_for(happened: Callable[[], bool], failure: str) -> None:
    """Wait for what comes within a second or two: the journal is written once a second, the alias read as often."""
    deadline = time.monotonic() + _PATIENCE_S
    while not happened():
        if time.monotonic() > deadline:
            raise OperationError(f"After {_PATIENCE_S:.0f} s {failure}. See: hpctool runs list")
        time.sleep(0.1)
