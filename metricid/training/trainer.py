"""The training loop, readable from top to bottom."""

import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from metricid.data.loader import Batch
from metricid.errors import InputError
from metricid.losses.remembered import RememberedLoss
from metricid.training.build import Run
from metricid.training.checkpoint import CheckpointStore, random_state, write_checkpoint
from metricid.training.distributed import (
    Interrupted,
    any_rank,
    barrier,
    gather_batch,
    gather_objects,
    share_buffers,
)
from metricid.training.found import Findings, never_used
from metricid.training.loggers import JsonlLog, Progress, TensorBoardLog
from metricid.training.module import build_module, check_compiler
from metricid.training.momentum import slow_network
from metricid.training.offline import mine_offline
from metricid.training.optim import WeightAverage, set_learning_rate
from metricid.training.saving import check_state, load_state, model_state, whole_state
from metricid.training.signals import Stopped, StopRequest
from metricid.training.state import Position, Window
from metricid.training.surgery import GradientSurgery
from metricid.training.validation import evaluate_model


class Trainer:
    """Trains a run to its end, from where its checkpoints stand.

    Args:
        run: the parts.
        folder: the run folder.

    Raises:
        InputError: `train.compile` where there is no compiler.
    """

    def __init__(self, run: Run, folder: Path):
        self.run = run
        self.config = run.config
        self.world = run.world
        self.folder = folder
        if self.config.train.compile:
            check_compiler(run.world.device)
        self.store = CheckpointStore(folder / "checkpoints", self.config.checkpoint.keep)
        self.position = Position()
        self.average = WeightAverage(run.embedder, self.config.train.ema) if self.config.train.ema else None
        self.slow = slow_network(run)
        self.surgery: GradientSurgery | None = None
        if self.config.train.gradients == "pcgrad":
            parts = run.embedder.parameters(), run.objective.parameters()
            self.surgery = GradientSurgery(*parts, run.world, run.config.seed)
        self.scaler = torch.amp.GradScaler(run.world.device.type, enabled=run.precision.scaled)
        self.parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
        self.total_steps = run.total_steps
        self.fingerprint = run.splits.train.fingerprint()
        self.stop = StopRequest()
        self.findings = Findings(run.objective)
        self._skipped_before: list[str] = []
        self._log_position = 0

    def fit(self) -> None:
        """Trains to the end, from where `resume` left it; the last state is in the run folder then.

        Raises:
            InputError: ten non-finite losses in a row, a full disk, an unreadable image.
            Stopped: SIGTERM or Ctrl-C; the state is saved.
        """
        self.log = JsonlLog(self.folder / "log.jsonl", self._log_position) if self.world.is_main else None
        self.board = self._open_tensorboard()
        self.module = build_module(self.run)
        self.progress = Progress(self.total_steps, self.position.step, self.world.is_main)
        batches = self.total_steps * self.config.train.accumulate
        for name, line in never_used(self.run.objective, self.run.loader.sampler, batches).items():
            self._write_log("never_used", option=name, problem=line)
            self.say(f"{name}: {line}")
        with self.stop:
            try:
                self._train()
            finally:
                self.progress.close()
                if self.log is not None:
                    self.log.close()
                if self.board is not None:
                    self.board.close()

    def _train(self) -> None:
        position, config = self.position, self.config
        batches = self._batches()
        saved_at, saved_time = position.step, time.monotonic()
        window = Window()
        if position.validation_due:  # a signal had cut it short
            self._pause(window, save=True)
        while position.step < self.total_steps:
            began = time.perf_counter()
            epoch_before = position.epoch
            waited = self.run.loader.wait_seconds
            before = replace(position)
            try:
                micro = [next(batches) for _ in range(config.train.accumulate)]
            except Interrupted:  # an offline pass was left: the next run makes it again, from the same state
                self.position = before
                self._pause(window, save=True)
                raise
            waited = self.run.loader.wait_seconds - waited
            window.wait += waited

            rate = set_learning_rate(self.run.optimizer, config.optim, position.step / self.total_steps)
            images = config.train.accumulate * self.run.batch_images
            self._step(micro, window, images)
            if self.run.mined is not None:
                whole = self.run.loader.num_batches(position.epoch)
                self.run.mined.after_step(position.epoch * whole + position.batch)
            position.step += 1
            position.images += images
            position.wait_seconds += waited
            position.train_seconds += time.perf_counter() - began

            text = None
            if self._logged(position.step):
                text = self._report(window, rate)
                window = Window()
            self.progress.step(text)

            finished = position.step == self.total_steps
            crossed = position.epoch - epoch_before
            if crossed:
                self.run.objective.after_epoch()
            every = config.evaluation.every
            if every and (finished or (crossed and position.epoch % every == 0)):
                position.validation_due = True
            due = self._checkpoint_due(crossed, position.step - saved_at, time.monotonic() - saved_time)
            if self._pause(window, save=finished or due):
                saved_at, saved_time = position.step, time.monotonic()

    def _pause(self, window: Window, *, save: bool) -> bool:
        """What happens between steps: a validation if due, then the checkpoint, then the end if asked for.

        Args:
            window: does not count the time that this takes.
            save: write the state in any case.

        Returns:
            Whether the state was written.

        Raises:
            Stopped: SIGTERM or Ctrl-C; the state is saved, with the validation still due if it was cut short.
        """
        paused = time.perf_counter()
        position = self.position
        if position.validation_due:
            self._validate()
        stop = any_rank(self.stop.number is not None, self.world)
        if save or stop:
            path = self._save()
            if stop:
                number = self.stop.number or signal.SIGTERM
                raise Stopped(
                    f"stopped by {signal.Signals(number).name} after step {position.step} of "
                    f"{self.total_steps}; the state is in {path}; the same command continues",
                    number,
                )
        window.started += time.perf_counter() - paused
        return save

    def _step(self, micro: list[Batch], window: Window, images: int) -> None:
        """One optimiser step on one or more batches; nothing is changed if the loss is not finite."""
        run, device = self.run, self.world.device
        progress = self.position.step / self.total_steps
        logged = self._logged(self.position.step + 1)
        run.optimizer.zero_grad(set_to_none=True)
        buffers = list(run.embedder.buffers())
        before = [b.clone() for b in buffers]
        total = 0.0
        terms: dict[str, Tensor] = {}
        used = []
        for number, batch in enumerate(micro):
            pixels = batch.images.to(device, non_blocking=True)
            labels = batch.labels.to(device, non_blocking=True)
            last = number == len(micro) - 1
            side = run.side.of(batch, pixels, run.objective.teachers_at(progress))
            with nullcontext() if last and self.surgery is None else self._local_gradients():
                output, features, embedding = self.module(pixels, labels, progress, logged and last, side)
                if self.surgery is None:
                    self.scaler.scale(output.total / len(micro)).backward()
                else:
                    self.surgery.add(self.scaler.scale(output.parts / len(micro)))
            total += float(output.total.detach()) / len(micro)
            for name, value in output.terms.items():
                terms[name] = terms.get(name, 0.0) + value / len(micro)
            used.append((features, embedding, labels, pixels, batch.index))
        if self.surgery is not None:
            self.surgery.finish(self.position.step)

        self.scaler.unscale_(run.optimizer)
        norm = self._clip()
        if any_rank(not math.isfinite(total) or not math.isfinite(norm), self.world):
            with torch.no_grad():
                for buffer, old in zip(buffers, before, strict=True):
                    buffer.copy_(old)
            scale = self.scaler.get_scale()
            self.scaler.update()
            # A finite loss whose scaled gradients overflow is how the scale finds its size, down to 1.
            if not math.isfinite(total) or not self.scaler.is_enabled() or scale <= 1.0:
                self._count_nonfinite(terms, total, norm)
            return
        for parameter in run.objective.inactive_parameters(progress):
            parameter.grad = None  # gradients of zero would still let weight decay and momentum move them
        self.scaler.step(run.optimizer)
        self.scaler.update()
        if self.slow is not None:
            self.slow.update(run.embedder)
        for features, embedding, labels, pixels, index in used:
            slow = None if self.slow is None else self.slow.of(pixels)
            run.objective.after_step(features, embedding, labels, self._gather(), slow=slow)
            if run.mined is not None:
                run.mined.update(embedding, labels, index, self._gather())
        if self.average is not None:
            self.average.update(run.embedder)
        self.position.nonfinite_in_a_row = 0
        window.add(total, terms, images)
        window.weights, window.norms = output.weights, output.norms

    def _logged(self, step: int) -> bool:
        """Whether the log has a line after this step, counted from 1."""
        return step % self.config.log.every == 0 or step == self.total_steps

    def _local_gradients(self) -> AbstractContextManager[None]:
        """Holds back the averaging over ranks until the last batch of a step."""
        module = self.module
        return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()

    def _clip(self) -> float:
        """The norm of all gradients together, after limiting it."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients, foreach=True)
        limit = self.config.train.clip_norm
        if limit is not None and float(norm) > limit:  # else it would multiply every gradient by 1
            nn.utils.clip_grads_with_norm_(self.parameters, limit, norm, foreach=True)
        return float(norm)

    def _count_nonfinite(self, terms: dict[str, Tensor], total: float, norm: float) -> None:
        position = self.position
        position.nonfinite += 1
        position.nonfinite_in_a_row += 1
        bad = [name for name, value in terms.items() if not math.isfinite(float(value))]
        what = f"loss of {', '.join(bad)}" if bad else "loss" if not math.isfinite(total) else "gradient"
        self._write_log("nonfinite", step=position.step, what=what, loss=total, grad_norm=norm)
        self.progress.say(
            f"step {position.step}: non-finite {what}, step skipped ({position.nonfinite} in all)"
        )
        if position.nonfinite_in_a_row >= self.config.train.max_nonfinite:
            raise InputError(
                f"step {position.step}: {position.nonfinite_in_a_row} non-finite steps in a row ({what}); "
                "try a smaller optim.lr, a longer optim.warmup, train.clip_norm=1, or train.precision=fp32"
            )

    def _report(self, window: Window, rate: float) -> str:
        seconds = max(time.perf_counter() - window.started, 1e-9)
        position = self.position
        terms = window.means()
        loss = window.loss / window.steps if window.steps else float("nan")
        speed = window.images / seconds
        wait = window.wait / seconds
        mined, empty = self.findings.read()
        self._write_log(
            "step",
            step=position.step,
            epoch=position.epoch,
            images=position.images,
            lr=rate,
            loss=loss,
            terms=terms,
            weights=window.weights,
            grad_norms={name: float(norm) for name, norm in window.norms.items()},
            images_per_second=round(speed, 1),
            wait_share=round(wait, 4),
            skipped_images=len(self.skipped_images()),
            **({"mined": mined} if mined else {}),
            **self._mining(),
        )
        for name, batches in empty:
            self._write_log("mined_nothing", step=position.step, term=name, batches=batches)
            self.progress.say(f"step {position.step}: {self.findings.advice(name, batches)}")
        if self.board is not None:
            scalars = {"loss": loss, "lr": rate, "images_per_second": speed, "wait_share": wait}
            scalars |= {f"terms/{name}": value for name, value in terms.items()}
            scalars |= {f"mined/{name}": value for name, value in mined.items()}
            scalars |= {f"weights/{name}": value for name, value in window.weights.items()}
            scalars |= {f"grad_norms/{name}": float(norm) for name, norm in window.norms.items()}
            self.board.write(position.step, scalars)
        detail = " ".join(f"{name} {value:.3f}" for name, value in terms.items())
        return f"{detail} | {speed:.0f} img/s, waiting {wait:.0%}"

    def _mining(self) -> dict[str, Any]:
        """For the log: what a mining sampler is at, and how full each memory of past batches is."""
        found: dict[str, Any] = {}
        if self.run.mined is not None:
            found["mining"] = self.run.mined.sampler.status()
        full = {
            term.name: len(term.loss.memory) / term.loss.memory.size
            for term in self.run.objective.terms
            if isinstance(term.loss, RememberedLoss)
        }
        if full:
            found["memory"] = full
        return found

    def _validate(self) -> None:
        """Measures the model and keeps it if it is the best; a stop request leaves all as it was before."""
        validation = self.run.splits.validation
        if validation is None:
            self.position.validation_due = False
            return
        embedder = self.average.model if self.average is not None else self.run.embedder
        if not self.config.train.sync_batchnorm:
            share_buffers(embedder, self.world)
        try:
            results = evaluate_model(
                embedder,
                self.run.splits.source,
                validation,
                self.config.data,
                self.config.evaluation,
                self.world,
                self.run.precision,
                stop=lambda: self.stop.number is not None,
            )
        except Interrupted:
            return
        self.position.validation_due = False
        name = self.config.evaluation.best
        value = results[0].metrics[name]
        self._write_log(
            "validation",
            step=self.position.step,
            epoch=self.position.epoch,
            results=[{"protocol": r.protocol, "metrics": r.metrics} for r in results],
        )
        if self.board is not None:
            self.board.write(self.position.step, {f"validation/{name}": value})
        self.run.objective.after_validation(value)
        improved = self.position.best is None or value > self.position.best
        self.progress.say(
            f"epoch {self.position.epoch}: validation {name} {value:.4f}"
            + (" (best so far)" if improved else "")
        )
        if improved:
            self.position.best = value
            if self.world.is_main:
                write_checkpoint(self.store.best, model_state(self))

    def _checkpoint_due(self, epochs: int, steps: int, seconds: float) -> bool:
        config = self.config.checkpoint
        if epochs and self.position.epoch % config.every_epochs == 0:
            return True
        if config.every_steps is not None and steps >= config.every_steps:
            return True
        due = config.every_minutes is not None and seconds >= 60 * config.every_minutes
        return any_rank(due, self.world)

    def _save(self) -> Path:
        """Writes the whole state; rank 0 writes, the generators of all ranks go into it."""
        generators = gather_objects(random_state(), self.world)
        path = self.folder
        if self.world.is_main:
            path = self.store.save(whole_state(self, generators), self.position.step)
        barrier(self.world)
        return path

    def skipped_images(self) -> list[str]:
        """Unreadable images that this process has skipped, before and after a resume."""
        return list(dict.fromkeys([*self._skipped_before, *self.run.loader.corrupt]))

    def resume(self) -> None:
        """Takes up the newest readable checkpoint, if there is one.

        Raises:
            InputError: it belongs to another recipe, other data, or another number of processes.
        """
        found = self.store.newest(self.say)
        if found is None:
            return
        path, state = found
        check_state(self, path, state)
        load_state(self, path, state)
        self._skipped_before = state["skipped_images"]
        self._log_position = state["log_position"]
        self.say(f"resuming {self.folder} from step {self.position.step} of {self.total_steps}")

    def _gather(self) -> Any:
        return gather_batch if self.world.distributed else None

    def _batches(self) -> Iterator[Batch]:
        """All batches from the present position on, across epochs; the position moves with them."""
        position, loader = self.position, self.run.loader
        while True:
            if not position.batch:
                self._prepare_epoch()
            for batch in loader.epoch(position.epoch, position.batch):
                position.batch += 1
                if position.batch == loader.sampler.num_batches(position.epoch):
                    position.epoch, position.batch = position.epoch + 1, 0
                    yield batch
                    break
                yield batch

    def _prepare_epoch(self) -> None:
        """What a sampler that mines is told before an epoch; nothing of the epoch is drawn yet."""
        mined, position = self.run.mined, self.position
        if mined is None:
            return
        if mined.sampler.offline_due(position.epoch):
            facts = mine_offline(self.run, self.folder, stop=lambda: self.stop.number is not None)
            self._write_log("offline", step=position.step, epoch=position.epoch, **facts)
        mined.before_epoch()

    def _open_tensorboard(self) -> TensorBoardLog | None:
        if self.world.is_main and self.config.log.tensorboard:
            return TensorBoardLog(self.folder / "tensorboard", self.position.step)
        return None

    def _write_log(self, event: str, **values: Any) -> None:
        if self.log is not None:
            self.log.write(event, **values)

    def say(self, line: str) -> None:
        """A line for the user, from one process only."""
        if self.world.is_main:
            tqdm.write(line, file=sys.stderr)
