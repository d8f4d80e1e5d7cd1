"""The one training loop, on Accelerate: one device or many, any objective."""

import math
import time
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice

import torch
from accelerate.utils import tqdm

from lma_hf.errors import TrainingError
from lma_hf.training.optimizer import build_optimizer, build_scheduler
from lma_hf.training.shares import shares_of_step


@dataclass
class TrainResult:
    """Outcome of `Trainer.train`.

    Attributes:
        best_score, best_step: of the evaluation with the highest score. num_steps: optimizer steps done.
        train_seconds, examples_per_second: wall clock of the loop, evaluations included in neither.
    """

    best_score: float
    best_step: int
    num_steps: int
    train_seconds: float
    examples_per_second: float


class Trainer:
    """Minimises an objective and keeps the best model.

    Args:
        model: the model to train; wrapped by Accelerate for several processes.
        objective: nn.Module (model, batch) -> dict of named losses with the total under "loss". Its own parameters
            are trained too, and its attribute `progress` is kept at the steps done over all steps, for schedules.
        train_loader: a DataLoader of dicts of tensors.
        evaluate: (wrapped model, step) -> score, higher is better; called on every process.
        save_best: () -> None, called on every process after an evaluation that beats all before.
        log: (dict, step) -> None, called on every process.
        config: a `TrainConfig`.
        accelerator: an `accelerate.Accelerator`.
        activation_parameters: those of the model's parameters that get the activation learning rate.
        around_step: () -> context manager, entered around the passes of every optimizer step.
    """

    def __init__(
        self,
        model,
        objective,
        train_loader,
        *,
        evaluate,
        save_best,
        log,
        config,
        accelerator,
        activation_parameters=(),
        around_step=nullcontext,
    ):
        self.config, self.accelerator = config, accelerator
        self.evaluate, self.save_best, self.log, self.around_step = evaluate, save_best, log, around_step
        # with a gradient scaler, a fused step hides from accelerate that it was skipped
        fused = accelerator.scaler is None
        optimizer = build_optimizer([model, objective], activation_parameters, config, fused=fused)
        if config.gradient_checkpointing:
            # older releases of transformers 5 know the second name only
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable()
        self.model, self.optimizer, self.loader = accelerator.prepare(model, optimizer, train_loader)
        self.plain_objective = objective
        # without parameters there is nothing for DDP to synchronise
        trains = any(parameter.requires_grad for parameter in objective.parameters())
        self.objective = accelerator.prepare(objective) if trains else objective
        self.steps_per_epoch = math.ceil(len(self.loader) / config.gradient_accumulation_steps)
        self.num_steps = config.max_steps or self.steps_per_epoch * config.num_train_epochs
        self.scheduler = build_scheduler(self.optimizer, self.num_steps, config)
        self.step, self.best_score, self.best_step, self.without_gain = 0, -math.inf, 0, 0
        self.seconds, self.examples = 0.0, 0
        self.window = LossWindow()

    def train(self):
        """Run to the end, or until early stopping.

        Returns: TrainResult. Raises: TrainingError if the loss is not finite.
        """
        with tqdm(total=self.num_steps, desc="training", unit="step") as self.bar:
            while self.step < self.num_steps and not self._should_stop():
                self._run_epoch()
        return TrainResult(
            self.best_score, self.best_step, self.step, self.seconds, self.examples / max(self.seconds, 1e-9)
        )

    def _run_epoch(self):
        self.model.train()
        start = time.perf_counter()
        for batches in self._steps():
            self._train_step(batches)
            self._after_step()
            if self._evaluation_is_due():
                self.seconds += time.perf_counter() - start
                self._evaluate()
                start = time.perf_counter()
                if self._should_stop():
                    break
            if self.step >= self.num_steps:
                break
        self.seconds += time.perf_counter() - start

    def _steps(self):
        """The batches of every optimizer step of an epoch, as lists; the last may be shorter."""
        batches = iter(self.loader)
        while step := list(islice(batches, self.config.gradient_accumulation_steps)):
            yield step

    def _train_step(self, batches):
        self.plain_objective.progress = self.step / self.num_steps
        with self.around_step():
            for batch, share in zip(batches, shares_of_step(batches, self.accelerator), strict=True):
                with self._accumulate(is_last=batch is batches[-1]):
                    parts = {name: part * share for name, part in self.objective(self.model, batch).items()}
                    # accelerate divides by it, but the shares sum up to 1 already
                    self.accelerator.backward(parts["loss"] * self.config.gradient_accumulation_steps)
                self.window.add(parts)
                self.examples += len(batch["labels"]) * self.accelerator.num_processes
        self.window.count += 1
        self._apply_gradients()

    @contextmanager
    def _accumulate(self, is_last):
        """Processes exchange their gradients with a step's last batch only."""
        # accelerator.accumulate would do so as soon as the loader is at its end, which is one step ahead of us
        self.accelerator.sync_gradients = is_last
        with ExitStack() as stack:
            for module in () if is_last else (self.model, self.objective):
                stack.enter_context(self.accelerator.no_sync(module))
            yield

    def _apply_gradients(self):
        if self.config.max_grad_norm:
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            self.accelerator.clip_grad_norm_(parameters, self.config.max_grad_norm)
        self.optimizer.step()
        if not self.optimizer.step_was_skipped:
            self.scheduler.step()
        self.optimizer.zero_grad()

    def _after_step(self):
        self.step += 1
        self.bar.update(1)
        if self.step % self.config.logging_steps == 0 or self._evaluation_is_due():
            self._log_losses()

    def _log_losses(self):
        losses, examples_per_second = self.window.close(self.accelerator, self.examples)
        if not math.isfinite(losses["loss"]):
            raise TrainingError(
                f"the loss is {losses['loss']} at step {self.step} of {self.num_steps}; lower --learning_rate "
                f"(now {self.config.learning_rate}) or check the data; "
                + (f"the best model so far is from step {self.best_step}" if self.best_step else "no model was saved")
            )
        self.bar.set_postfix(loss=f"{losses['loss']:.4f}", rate=f"{examples_per_second:.0f}/s")
        epoch = round(self.step / self.steps_per_epoch, 4)
        rates = {"learning_rate": self.scheduler.get_last_lr()[0], "examples_per_second": examples_per_second}
        self.log({"step": self.step, "epoch": epoch, **losses, **rates}, self.step)

    def _evaluation_is_due(self):
        every = self.config.eval_steps or self.steps_per_epoch
        return self.step % every == 0 or self.step == self.num_steps

    def _evaluate(self):
        score = self.evaluate(self.model, self.step)
        if score > self.best_score:
            self.best_score, self.best_step, self.without_gain = score, self.step, 0
            self.save_best()
        else:
            self.without_gain += 1
        self.model.train()
        self.window.restart(self.examples)

    def _should_stop(self):
        patience = self.config.early_stopping_patience
        return patience is not None and self.without_gain >= patience


class LossWindow:
    """Mean losses and rate since the last log line; losses stay on their device until the window closes.

    Attributes: totals: sums of the losses, each weighted by its batch's share of a step. count: steps.
    """

    def __init__(self):
        self.restart(0)

    def restart(self, examples):
        self.totals, self.count = {}, 0
        self.start, self.first_example = time.perf_counter(), examples

    def add(self, parts):
        for name, value in parts.items():
            self.totals[name] = self.totals.get(name, 0) + value.detach()

    def close(self, accelerator, examples):
        """(mean losses over the window and all processes, examples a second), and start anew."""
        means = torch.stack([total.float() for total in self.totals.values()]) / self.count
        means = accelerator.reduce(means, reduction="mean").tolist()
        rate = (examples - self.first_example) / max(time.perf_counter() - self.start, 1e-9)
        losses = dict(zip(self.totals, means, strict=True))
        self.restart(examples)
        return losses, round(rate, 1)
