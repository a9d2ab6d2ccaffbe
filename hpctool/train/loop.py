"""The training loop: the whole story of a step, in one file, to be read and to be copied.

An attempt builds the model, restores the newest checkpoint, and then takes steps until the budget is reached:

    batch → forward, backward (gradients averaged over ranks) → finite? → clip → optimizer step
    → at the boundary: log, validate, agree with the other ranks, save, stop

What makes a run that was killed end with the same bits as one that was not:
- the batch of a step is a pure function of the number of samples consumed (samples.py);
- every random stream is in the checkpoint, and drawn from in steps only (seeds.py);
- gradients are summed in the same order in every attempt (strategy.py);
- what happens at a boundary depends on the step, or is agreed on, and changes nothing that is trained.
"""

from __future__ import annotations

import math
import time
from contextlib import closing
from typing import Any

from hpctool import files
from hpctool.checkpoint import Restored, check_state, random_state, set_random_state
from hpctool.errors import Stopped
from hpctool.launch import moments, signals
from hpctool.launch.watchdog import Watchdog, watching
from hpctool.rundir import RunDir
from hpctool.track.metrics import MetricWriter
from hpctool.train import continued, parallel, params, seeds, stopping, summary
from hpctool.train.agreement import Agreement, Position, Wishes
from hpctool.train.batches import Batches
from hpctool.train.best import Best
from hpctool.train.evaluate import measure
from hpctool.train.fingerprint import MEANING, differences, fingerprint
from hpctool.train.initial import read_initial
from hpctool.train.learner import Learner, named
from hpctool.train.meter import Meter, Progress
from hpctool.train.nonfinite import NonFinite, RollBack
from hpctool.train.resolve import check_layout
from hpctool.train.samples import open_sources
from hpctool.train.schedule import num_steps
from hpctool.train.task import metrics_of
from hpctool.world import World


def train(rundir: RunDir, world: World) -> dict[str, Any]:
    """Train a run to the end of its budget and return its result; one that is there already only returns it.

    Collective: all ranks must call it. Raises Stopped after saving, when any rank was asked to stop; OperationError on
    gradients that are not finite; InputError for what does not fit; and what checkpoints and data raise.
    """
    with watching(rundir, world.rank, world.size) as watchdog:
        trainer = Trainer(rundir, world, watchdog)
        trainer.resume()
        with parallel.explained(), MetricWriter(rundir, world) as writer, trainer.checkpoints:
            trainer.run(writer)
        with watchdog.phase("save"):
            return trainer.result()


class Trainer:
    """One attempt of a run: what it holds, and what is done with it. Collective: all ranks make one."""

    def __init__(self, rundir: RunDir, world: World, watchdog: Watchdog) -> None:
        self.rundir, self.world, self.watchdog = rundir, world, watchdog
        self.cfg = cfg = params.read_config(rundir)
        check_layout(cfg.loop, world.size)
        parallel.be_deterministic(cfg.num_threads, cfg.loop.deterministic)
        self.device = parallel.device_of(world)

        self.samples, self.val_samples = open_sources(cfg, rundir, world, params.build_augment(cfg))
        pieces = (cfg.loop.global_batch_size, cfg.loop.accumulate, world.rank, world.size)
        self.batches = Batches(self.samples, *pieces, self.device, cfg.loop.num_workers)
        self.max_steps = num_steps(cfg.loop, len(self.samples))
        self.eval_every = cfg.loop.eval_every_steps or math.ceil(len(self.samples) / cfg.loop.global_batch_size)

        # The same model on every rank, then other random numbers on each.
        seeds.seed_everything(cfg.seed)
        self.task = params.build_task(cfg)
        self.task.preprocess.to(self.device)
        self.learner = Learner(cfg, self.task, world, self.device, self.max_steps)
        self.model = self.learner.model
        seeds.seed_everything(cfg.seed, 1 + world.rank)

        self.nonfinite = NonFinite(cfg.loop, rundir, self.model)

        self.step = 0
        self.consumed = 0  # samples, over all ranks
        self.meter = Meter()  # since the last line of metrics
        self.metrics: dict[str, float] = {}  # the newest value of each
        self.best = Best(cfg.loop)
        self.is_fork = False  # it has begun with another run's checkpoint, and has none of its own yet
        self.unlike: list[str] = []  # what bits depend on and is other than in the attempt that it goes on from
        self.validated = 0  # the newest step that was measured on the validation split

        self.checkpoints = params.build_checkpointer(cfg, rundir, world)
        self.saved_s = time.monotonic()
        self.agreement = Agreement(world, self.model, cfg.parallel.compare_every_steps)
        self.progress = Progress(self.max_steps, self.say, best=cfg.loop.best_metric)

    # ------------------------------------------------------------------------------------------ the whole of it

    def run(self, writer: MetricWriter) -> None:
        """Take steps until the budget is reached. Raises Stopped, OperationError."""
        if self.is_over and self.step == self.validated and not self.is_fork:
            return
        with closing(self.batches):
            self.warm_up()
            self.progress.begin()
            if self.is_fork:
                self.save(writer)
                self.checkpoints.wait()
            if self.validated != self.step:
                # The attempt before was stopped in the middle of it.
                self.validate(writer)
                if self.is_over or self.best.entered:
                    self.save(writer, is_last=self.is_over)
            while not self.is_over:
                self.advance(writer)
                if self.progress.num_steps == 1:
                    # Only now the optimizers have a state.
                    self.checkpoints.prepare(self.state())
            self.agreement.finish()

    def advance(self, writer: MetricWriter) -> None:
        """One step, and what is due at the boundary behind it. Collective. Raises Stopped, OperationError."""
        try:
            grad_norms = self.train_step()
        except RollBack:
            self.roll_back(writer)
            return
        self.log(writer, grad_norms)
        self.validate(writer)
        self.progress.speak(self.step, self.metrics)
        self.save_or_stop(writer)

    def train_step(self) -> dict[str, float]:
        """One optimizer step over one global batch; the norm of the gradient of each part. Raises OperationError."""
        moments.reached("step", self.step, self.rundir.attempt)
        learner, num_passes = self.learner, self.cfg.loop.accumulate
        self.watchdog.begin_step(self.step + 1)
        self.nonfinite.begin_step()
        batches = [self.batches.get(self.consumed, number) for number in range(num_passes)]
        grad_norms, moved = {}, False
        for part in learner.parts:  # one, but for tasks with several optimizers
            learner.begin(part, self.step)
            all_sums = []
            for number, batch in enumerate(batches):
                self.watchdog.mark("forward")
                with learner.strategy.averaging(now=number == num_passes - 1):
                    loss, sums = learner.loss(part, batch)
                    self.watchdog.mark("backward")
                    learner.precision.backward(loss / num_passes if num_passes > 1 else loss)
                all_sums.append(sums)
            self.watchdog.mark("update")
            grad_norms[part.name] = grad_norm = learner.clip(part)
            if learner.precision.overflowed(grad_norm) or self.nonfinite.may_step(self.step + 1, grad_norm):
                learner.precision.step(part.optimizer)
                moved = True
                for sums in all_sums:
                    self.meter.add(sums)
        learner.finish_step(moved)
        self.step += 1
        self.consumed += self.cfg.loop.global_batch_size
        self.progress.count(self.cfg.loop.global_batch_size)
        self.watchdog.end_step()
        return grad_norms

    # ------------------------------------------------------------------------------------------ at the boundary

    def log(self, writer: MetricWriter, grad_norms: dict[str, float]) -> None:
        """Write the training metrics of the steps since the last line, if one is due. Collective."""
        if self.step % self.cfg.track.every_steps and not self.is_over:
            return
        total = self.meter.total(self.world)
        # Where every step since the last line was skipped there is nothing to say.
        values = {f"train/{name}": value for name, value in metrics_of(self.task, total).items()} if total else {}
        self.meter = Meter()
        self.metrics |= values
        others = {
            **self.learner.rates(),
            **{named("train/grad_norm", part): norm for part, norm in grad_norms.items()},
            "train/samples_per_s": self.progress.samples_per_s,
            "train/data_wait": self.batches.data_wait(),
            "epoch": self.consumed / len(self.samples),
        }
        if self.nonfinite.skipped:
            others["train/skipped"] = self.nonfinite.skipped
        writer.log(self.step, values | others)

    def validate(self, writer: MetricWriter) -> None:
        """Measure on the validation split, if that is due, and keep what was best. Collective. Raises Stopped."""
        if self.step % self.eval_every and self.step != self.max_steps:
            return
        moments.reached("evaluate", self.step, self.rundir.attempt)
        with self.watchdog.phase("evaluation"), self.learner.precision.autocast():
            self.learner.share_buffers()
            model, strategy = self.learner.trained.eval(), self.learner.strategy
            pieces = (self.world, self.cfg.loop.eval_batch_size, self.stop_meanwhile)
            found = measure(model, self.task, self.val_samples, *pieces, in_step=strategy.in_step)
            strategy.evaluated(model.train())
        if found is None:
            # A validation may take longer than a grace time; the next attempt begins with it.
            self.save_and_stop(writer)
            return
        self.validated = self.step
        values = {f"val/{name}": value for name, value in found.items()}
        self.best.check(values, is_followed=self.learner.follows_best)
        self.metrics |= values
        writer.log(self.step, values)
        self.best.note(self.step, values, self.learner.trained)
        self.learner.validated(self.best.score(values))
        if self.best.gave_up:
            self.say(f"no better {self.cfg.loop.best_metric} since step {self.best.step}: the run ends here")
            # The norm of the gradient is not known where the attempt before was stopped in here.
            self.log(writer, {})

    def stop_meanwhile(self) -> bool:
        """Asked before each batch of a validation: whether this rank was told to stop."""
        self.watchdog.pulse()
        return signals.stop_requested()

    def save_or_stop(self, writer: MetricWriter) -> None:
        """Do what the ranks agreed on at the boundary before, and say what this one wants now. Collective."""
        every_min = self.cfg.loop.checkpoint_every_min
        minutes_due = every_min is not None and time.monotonic() - self.saved_s >= 60 * every_min
        # Clocks differ; rank 0's decides.
        save = minutes_due and self.world.is_main
        wishes = Wishes(stop=signals.stop_requested(), save=save, failed=self.checkpoints.poll())
        every_steps = self.cfg.loop.checkpoint_every_steps
        is_due = self.is_over or self.best.entered or bool(every_steps and self.step % every_steps == 0)
        agreed = self.agreement.exchange(wishes, self.position(), saves=is_due)
        if agreed.failed:
            self.checkpoints.wait()
        if self.is_over:
            self.save(writer, is_last=True)
        elif agreed.stop:
            self.save_and_stop(writer)
        elif agreed.save or is_due:
            self.save(writer)

    def position(self) -> Position:
        """What must be the same on all ranks now, beside the parameters."""
        return Position(self.step, self.consumed, self.learner.parts[0].optimizer.param_groups[0]["lr"])

    def save_and_stop(self, writer: MetricWriter) -> None:
        """Commit a checkpoint, if there is time for one, and raise Stopped. Collective: all ranks have agreed on it."""
        stop = stopping.decide(self.rundir, self.world, self.checkpoints)
        self.say(stop.words)
        if stop.kept is None:
            self.save(writer, is_last=True)
        self.agreement.finish()
        raise Stopped(stop.cause, self.step if stop.kept is None else stop.kept, note=stop.note)

    def roll_back(self, writer: MetricWriter) -> None:
        """Go back to the newest checkpoint by steps, and on with the samples behind this batch. Collective.

        nonfinite.py says why. Raises OperationError where that is not possible.
        """
        self.agreement.finish()
        # It may be the one to go back to.
        self.checkpoints.wait()
        failed, behind = self.step + 1, self.consumed + self.cfg.loop.global_batch_size
        step = self.world.on_main(lambda: self.nonfinite.note_rollback(failed, self.consumed))
        self.say(f"step {failed}: the gradient is not finite; back to step {step}, on with the samples behind this one")
        self.learner.forget_gradients()
        with self.watchdog.phase("save"):
            restored = self.checkpoints.restore(self.learner.strategy.mesh)
            assert restored is not None, "it was in the ledger a moment ago"
            self.adopt(restored)
        self.consumed = behind
        writer.rewind()

    # ------------------------------------------------------------------------------------------ to disk and back

    def state(self) -> dict[str, Any]:
        """All that the next step depends on and that is the same on all ranks, or sharded over them."""
        return {
            "step": self.step,
            "consumed": self.consumed,
            **self.learner.state(),
            "metrics": self.metrics,
            "best": self.best.state(),
            "validated": self.validated,
            "nonfinite": self.nonfinite.state(),
        }

    def save(self, writer: MetricWriter, *, is_last: bool = False) -> None:
        """Commit a checkpoint of this step, beside the next ones unless it is the last of this attempt. Collective.

        Raises what became of the save before (Checkpointer.wait), and with `is_last` of this one: DesyncError where the
        ranks are not alike, which is compared first and beside the training, too.
        """
        with self.watchdog.phase("save"):
            self.learner.share_buffers()
            if is_last:
                self.progress.end()
            info = {
                "consumed": self.consumed,
                "config": continued.settings(self.cfg),
                "fingerprint": fingerprint(self.world, self.device),
                "samples_per_s": self.progress.samples_per_s,
            }
            own = {"rng": random_state(), "meter": self.meter.sums}
            every_steps = self.cfg.loop.checkpoint_every_steps or 1
            if self.cfg.loop.on_nonfinite == "rollback" and self.step % every_steps == 0:
                self.checkpoints.keep = {self.step}
            score = self.best.score(self.metrics) if self.validated == self.step else None
            facts: dict[str, Any] = {
                "per_rank": own,
                "info": info,
                "score": score,
                "check": self.agreement.check(self.position()),
            }
            if is_last:
                self.checkpoints.save(self.state(), self.step, is_last=True, before_commit=writer.flush, **facts)
            else:
                self.checkpoints.async_save(self.state(), self.step, before_commit=writer.flush, **facts)
        self.saved_s = time.monotonic()
        self.best.entered = False

    def resume(self) -> None:
        """Continue where the newest checkpoint is, or begin. Collective."""
        params.check_storable(self.model)
        check_state(self.state())
        restored = self.checkpoints.restore(self.learner.strategy.mesh, allow_regress=self.cfg.allow_regress)
        if restored is not None:
            continued.check_config(self.rundir, restored, self.cfg)
        else:
            restored = continued.from_origin(self.cfg, self.world, self.state())
            self.is_fork = restored is not None
        if restored is not None:
            self.adopt(restored)
        else:
            self.say(summary.headline(self.model))
            if self.cfg.init_from:
                values, where = read_initial(self.cfg, self.rundir)
                params.check_model(self.model, values, where)
                self.learner.begin_with(values)
                self.say(f"begins with the weights of {self.cfg.init_from}")
        if self.world.is_main:
            files.write_atomic(self.rundir.artifact("model.txt"), summary.table(self.model).encode())
            facts = {"kind": "resumed", "attempt": self.rundir.attempt, "step": self.step, "max_steps": self.max_steps}
            self.rundir.ledger.append({**facts, **({"unlike": self.unlike} if self.unlike else {})})

    def adopt(self, restored: Restored) -> None:
        """Take over a checkpoint's state. With another number of ranks, random streams begin anew at its step."""
        state = restored.state
        params.check_model(self.model, state["model"], f"The checkpoint {restored.path.name}")
        self.step, self.consumed = state["step"], state["consumed"]
        self.metrics = state["metrics"]
        self.best.adopt(state["best"])
        self.validated = state.get("validated", self.step)
        self.nonfinite.adopt(state.get("nonfinite", self.nonfinite.state()))
        self.learner.adopt(state)
        if restored.per_rank is not None:
            set_random_state(restored.per_rank["rng"])
            self.meter = Meter(restored.per_rank["meter"])
        else:
            seeds.seed_everything(self.cfg.seed, 1 + self.world.rank, self.step)
        self.progress.samples_per_s = restored.info["samples_per_s"]
        self.say(f"resumed at step {self.step} of {self.max_steps} from {restored.path.name}")
        self.unlike = differences(restored.info["fingerprint"], fingerprint(self.world, self.device))
        if self.unlike:
            self.say(
                f"This attempt is not like the one that saved the checkpoint ({'; '.join(self.unlike)}): {MEANING}"
            )

    def result(self) -> dict[str, Any]:
        """What result.json says: the metrics and the digest of the parameters that the run has come to. Collective."""
        return params.result(self.state(), self.cfg, self.progress.samples_per_s)

    # ------------------------------------------------------------------------------------------ small things

    @property
    def is_over(self) -> bool:
        """Whether the budget is used up, or the run gave up before it."""
        return self.step >= self.max_steps or self.best.gave_up

    def warm_up(self) -> None:
        """The passes that let DDP settle (strategy.py); afterwards nothing has happened. Collective."""
        if not self.learner.strategy.num_discarded:
            return
        with parallel.without_trace(self.model):
            for _ in range(self.learner.strategy.num_discarded):
                loss, _ = self.learner.loss(self.learner.parts[0], self.batches.get(0, 0))
                loss.backward()  # type: ignore[no-untyped-call]

    def say(self, text: str) -> None:
        """One line for people, from rank 0."""
        if text and self.world.is_main:
            print(text, flush=True)
