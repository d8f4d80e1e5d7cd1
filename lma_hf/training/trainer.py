"""The one training loop, on Accelerate: one device or many, any objective."""

import logging
import math
import time
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from accelerate.utils import DistributedType, gather_object, tqdm

from lma_hf.errors import TrainingError
from lma_hf.training.batches import BatchStream
from lma_hf.training.loss_window import LossWindow
from lma_hf.training.nan_guard import NanGuard
from lma_hf.training.optimizer import build_optimizer, build_scheduler
from lma_hf.training.shares import shares_of_step
from lma_hf.training.used_embeddings import UsedEmbeddings

logger = logging.getLogger(__name__)

# What a Trainer counts; with the states of its parts this is all that decides how training goes on
COUNTERS = ("step", "best_score", "best_step", "without_gain", "seconds", "examples")


@dataclass
class TrainResult:
    """Outcome of `Trainer.train`.

    Attributes:
        best_score, best_step: of the evaluation with the highest score. num_steps: optimizer steps done.
        train_seconds, examples_per_second: wall clock of the loop, evaluations included in neither.
        skipped_steps: optimizer steps left out because the loss or a gradient was not finite.
    """

    best_score: float
    best_step: int
    num_steps: int
    train_seconds: float
    examples_per_second: float
    skipped_steps: int = 0


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
        token_ids: all that `train_loader` can hold; on one CPU process no other embeddings cost time or memory then.
        around_step: () -> context manager, entered around the passes of every optimizer step.
        after_step: (step, () -> state_dict) -> None, called on every process after every optimizer step, before an
            evaluation that is due; may write a checkpoint.
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
        token_ids=None,
        around_step=nullcontext,
        after_step=lambda step, make_state: None,
    ):
        self.config, self.accelerator = config, accelerator
        self.evaluate, self.save_best, self.log = evaluate, save_best, log
        self.around_step, self.after_step = around_step, after_step
        # with a gradient scaler, a fused step hides from accelerate that it was skipped
        fused = accelerator.scaler is None
        alone = accelerator.num_processes == 1 and accelerator.device.type == "cpu"
        small = alone and token_ids is not None and UsedEmbeddings.suit(model)
        self.embeddings = UsedEmbeddings(model, token_ids) if small else None
        trained = [model, objective, *([self.embeddings] if small else [])]
        with self.embeddings or nullcontext():
            optimizer = build_optimizer(trained, activation_parameters, config, fused=fused)
        if config.gradient_checkpointing:
            # older releases of transformers 5 know the second name only
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable()
        if config.compile:
            # row lengths change from batch to batch
            model.compile(dynamic=True)
        self.model, self.optimizer, loader = accelerator.prepare(model, optimizer, train_loader)
        self.batches = BatchStream(loader, accelerator.device)
        self.plain_objective = objective
        # without parameters there is nothing for DDP to synchronise
        trains = any(parameter.requires_grad for parameter in objective.parameters())
        self.objective = accelerator.prepare(objective) if trains else objective
        self.steps_per_epoch = math.ceil(len(self.batches) / config.gradient_accumulation_steps)
        self.num_steps = config.max_steps or self.steps_per_epoch * config.num_train_epochs
        self.scheduler = build_scheduler(self.optimizer, self.num_steps, config)
        self.step, self.best_score, self.best_step, self.without_gain = 0, -math.inf, 0, 0
        self.seconds, self.examples = 0.0, 0
        self.guard = NanGuard(model, self.optimizer, accelerator) if config.on_nan == "skip" else None
        self.window = LossWindow(skip_nan=self.guard is not None)

    def train(self):
        """Run to the end, or until early stopping.

        Returns: TrainResult. Raises: TrainingError if the loss is not finite.
        """
        progress = tqdm(total=self.num_steps, initial=self.step, desc="training", unit="step")
        with progress as self.bar, self.embeddings or nullcontext():
            # checkpoints are taken before the evaluation of their step
            if self.step and self._evaluation_is_due():
                self._evaluate()
            while self.step < self.num_steps and not self._should_stop():
                self._run_epoch()
        rate = self.examples / max(self.seconds, 1e-9)
        skipped = self.guard.total if self.guard else 0
        return TrainResult(self.best_score, self.best_step, self.step, self.seconds, rate, skipped)

    def state_dict(self):
        """All that decides how training goes on; for `torch.save`. Every process must call it, between two steps.

        Raises: TrainingError if losses or weights are not finite, so that no checkpoint holds what cannot be used.
        """
        model, objective = map(self.accelerator.unwrap_model, (self.model, self.objective))
        mine = {"random": self.batches.random_state(), "batches": self.batches.state_dict()}
        mine |= {"window": self.window.state_dict()}
        processes = gather_object([mine])
        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self._check_finite([process["window"]["totals"] for process in processes], [*model.parameters(), *trained])
        parts = {"optimizer": self.optimizer, "scheduler": self.scheduler, "guard": self.guard}
        parts |= {"model": model, "objective": objective, "scaler": self.accelerator.scaler}
        parts |= {"embeddings": self.embeddings}
        states = {name: part.state_dict() for name, part in parts.items() if part is not None}
        return {**states, "counters": {name: getattr(self, name) for name in COUNTERS}, "processes": processes}

    def load_state_dict(self, state):
        """Go on where `state_dict` was taken; call it before `train`."""
        device, mine = self.accelerator.device, state["processes"][self.accelerator.process_index]
        self.accelerator.unwrap_model(self.model).load_state_dict(state["model"])
        self.accelerator.unwrap_model(self.objective).load_state_dict(state["objective"])
        if self.embeddings is not None:
            self.embeddings.load_state_dict(state["embeddings"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        for name in COUNTERS:
            setattr(self, name, state["counters"][name])
        if self.guard is not None and "guard" in state:
            self.guard.load_state_dict(state["guard"], device)
        self.window.load_state_dict(mine["window"], device)
        self.batches.load_state_dict(mine["batches"])
        self.batches.set_random_state(mine["random"])

    def _run_epoch(self):
        self.model.train()
        self.start = time.perf_counter()
        for batches in self.batches.steps(self.config.gradient_accumulation_steps):
            self._train_step(batches)
            self._after_step()
            if self._evaluation_is_due():
                self._stop_clock()
                self._evaluate()
                self.start = time.perf_counter()
                if self._should_stop():
                    break
            if self.step >= self.num_steps:
                break
        self._stop_clock()

    def _train_step(self, batches):
        self.plain_objective.progress = self.step / self.num_steps
        if self.guard:
            self.guard.before_step()
        with self.around_step():
            for batch, share in zip(batches, shares_of_step(batches, self.accelerator), strict=True):
                with self._accumulate(is_last=batch is batches[-1]):
                    parts = self.objective(self.model, batch)
                    loss = self.guard.mark(parts["loss"]) if self.guard else parts["loss"]
                    # accelerate divides by gradient_accumulation_steps, but the shares sum up to 1 already
                    self.accelerator.backward(loss * share * self.config.gradient_accumulation_steps)
                self.window.add(parts, share)
                self.examples += len(batch["labels"]) * self.accelerator.num_processes
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
        self._clip_gradients()
        self.optimizer.step()
        if self.embeddings is not None and not (self.guard and self.guard.bad):
            self.embeddings.after_step(self.optimizer.param_groups[0])
        if not self.optimizer.step_was_skipped:
            self.scheduler.step()
        self.optimizer.zero_grad()
        if self.guard:
            self.guard.after_step()

    def _clip_gradients(self):
        if not (self.config.max_grad_norm or self.guard):
            return
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        if self.accelerator.distributed_type == DistributedType.FSDP:
            # accelerate compares them with the model's one by one, which fails where the order is another
            parameters = [*self.model.parameters(), *self.objective.parameters()]
        # an infinite limit measures the norm only
        norm = self.accelerator.clip_grad_norm_(parameters, self.config.max_grad_norm or math.inf)
        if self.guard:
            self.guard.judge(self.step + 1, norm)

    def _after_step(self):
        self.step += 1
        self.bar.update(1)
        if self.step % self.config.logging_steps == 0 or self._evaluation_is_due():
            self._log_losses()
        self._stop_clock()
        self.after_step(self.step, self.state_dict)

    def _stop_clock(self):
        now = time.perf_counter()
        self.seconds, self.start = self.seconds + now - self.start, now

    def _log_losses(self):
        losses, examples_per_second = self.window.close(self.accelerator, self.examples)
        if losses["loss"] is not None and not math.isfinite(losses["loss"]):
            raise self._not_finite(f"the loss is {losses['loss']}")
        self.bar.set_postfix(loss=f"{losses['loss'] or math.nan:.4f}", rate=f"{examples_per_second:.0f}/s")
        epoch = round(self.step / self.steps_per_epoch, 4)
        rates = {"learning_rate": self.scheduler.get_last_lr()[0], "examples_per_second": examples_per_second}
        if self.guard and (skipped := self.guard.report()):
            logger.warning("left out %d steps without a finite loss and gradient: %s", len(skipped), skipped)
            rates["skipped_steps"] = skipped
        self.log({"step": self.step, "epoch": epoch, **losses, **rates}, self.step)

    def _check_finite(self, totals, weights):
        tensors = [*(total["loss"] for total in totals if total), *weights]
        if not all(torch.isfinite(tensor).all() for tensor in tensors):
            raise self._not_finite("losses or weights are not finite")

    def _not_finite(self, what):
        best = f"the best model so far is from step {self.best_step}" if self.best_step else "no model was saved"
        return TrainingError(
            f"{what} at step {self.step} of {self.num_steps}; lower --learning_rate (now "
            f"{self.config.learning_rate}), check the data, or pass --on_nan skip; {best}"
        )

    def _evaluation_is_due(self):
        every = self.config.eval_steps or self.steps_per_epoch
        return self.step % every == 0 or self.step == self.num_steps

    def _evaluate(self):
        if self.embeddings is not None:
            self.embeddings.settle()
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
