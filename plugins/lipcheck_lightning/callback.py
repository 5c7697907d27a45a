"""A Lightning callback that logs a module's bounds while it is trained, penalises them, and ends at a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from lipcheck_monitor import Monitor, add_gradient
from lipcheck_monitor.figures import SURROGATE, penalty_options, weight_of

from lipcheck_lightning.frameworks import callbacks

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lipcheck import Report, training


class LipschitzMonitor(*callbacks()):  # type: ignore[misc]
    """Logs the network's certified bound and its largest layers every `every_n_steps` optimizer steps.

    The metrics go to the trainer's own loggers under `lipschitz/`, as `lipcheck_monitor.metrics` names them, and those
    of the network to `trainer.callback_metrics` too, where checkpoints and early stopping find them. Certified bounds,
    sampled ones and the penalty's surrogate have names of their own.

    `module` is the part of the LightningModule that is audited, by its dotted name, all of it without. `example` is one
    input with its batch axis; by default the LightningModule's `example_input_array`, or else the first of the batch
    at hand. `check` are further options of `lipcheck.check`.

    With a `penalty_weight` the gradient of weight times `lipcheck.training.LipschitzPenalty` is added in front of each
    optimizer step: once, however many batches were accumulated, after a gradient scaler is undone and before gradients
    are clipped. The loss that Lightning shows is without it. `penalty` are the options of that penalty.

    Training ends where the network's bound is above 10 ** `max_log10_bound`, infinite, or not claimed.

    Errors: ValueError for arguments that mean nothing; those of `lipcheck.check` in training.
    """

    def __init__(
        self,
        every_n_steps: int = 100,
        *,
        top: int = 5,
        module: str = "",
        example: Tensor | None = None,
        check: Mapping[str, Any] | None = None,
        penalty_weight: float = 0.0,
        penalty: Mapping[str, Any] | None = None,
        max_log10_bound: float | None = None,
    ) -> None:
        super().__init__()
        self.monitor = Monitor(every_n_steps, top, max_log10_bound, dict(check or {}))
        self.module = module
        self.example = example
        self.weight = weight_of(penalty_weight)
        self.options = penalty_options(penalty, self.weight)
        self.report: Report | None = None  # the latest
        self._penalty: training.LipschitzPenalty | None = None
        self._value: Tensor | None = None
        self._audited = 0

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """The layers to penalise are looked up."""
        part = self._part(pl_module)
        if self.weight:
            import lipcheck

            self._penalty = lipcheck.training.LipschitzPenalty(part, **self.options)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """The penalty's gradient joins that of the loss."""
        if self._penalty is not None:
            parameters = [one for group in optimizer.param_groups for one in group["params"]]
            scale = _scale(trainer, optimizer)
            self._value = add_gradient(self._penalty, self.weight, parameters, scale=scale)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """The audit, where one is due."""
        step = trainer.global_step
        if step == self._audited or not self.monitor.due(step):
            return
        self._audited = step
        stop = trainer.is_global_zero and self._audit(trainer, pl_module, batch, step)
        if self.monitor.budget is not None and trainer.strategy.reduce_boolean_decision(stop, all=False):
            trainer.should_stop = True

    def _audit(self, trainer: Any, pl_module: Any, batch: Any, step: int) -> bool:
        """Audits and logs; whether training is to end."""
        part = self._part(pl_module)
        self.report = self.monitor.audit(part, self._input(pl_module, batch))
        found = self.monitor.metrics(self.report)
        trainer.callback_metrics.update(
            {name: torch.tensor(value, dtype=torch.float64) for name, value in found.items() if "/network_" in name}
        )
        if self._value is not None:
            found[SURROGATE] = float(self._value)
        for logger in trainer.loggers:
            logger.log_metrics(found, step=step)
        return self.monitor.exceeded(self.report)

    def _part(self, pl_module: nn.Module) -> nn.Module:
        """What is audited.

        Errors: ValueError where the LightningModule has no such part.
        """
        try:
            return pl_module.get_submodule(self.module)
        except AttributeError as error:
            parts = ", ".join(name for name, _ in pl_module.named_children())
            raise ValueError(f"module is {self.module!r}; the LightningModule has {parts or 'no parts'}") from error

    def _input(self, pl_module: Any, batch: Any) -> Tensor | None:
        """One input, as far as it is known; `lipcheck.check` says what is missing."""
        if self.example is not None:
            example: Any = self.example
        elif isinstance(getattr(pl_module, "example_input_array", None), torch.Tensor):
            example = pl_module.example_input_array
        else:
            example = _first(batch)
        return None if example is None else example[:1].to(pl_module.device)


def _first(batch: Any) -> Tensor | None:
    """The first floating-point tensor with a batch axis in a batch."""
    if isinstance(batch, torch.Tensor):
        return batch if batch.is_floating_point() and batch.dim() > 1 else None
    parts = list(batch.values()) if isinstance(batch, Mapping) else batch
    if isinstance(parts, Sequence) and not isinstance(parts, str):
        return next((found for part in parts if (found := _first(part)) is not None), None)
    return None


def _scale(trainer: Any, optimizer: Any) -> float:
    """By how much gradients are still scaled: not at all, but for optimizers that undo it in their own step."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    inside = getattr(optimizer, "_step_supports_amp_scaling", False)
    return float(scaler.get_scale()) if scaler is not None and inside else 1.0
