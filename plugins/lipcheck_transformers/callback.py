"""A callback of transformers' Trainer that logs a model's bounds while it is trained, and ends training at a budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lipcheck_monitor import Monitor
from lipcheck_monitor.figures import SURROGATE
from transformers import TrainerCallback

from lipcheck_transformers.inputs import audited

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lipcheck import Report


class LipschitzCallback(TrainerCallback):  # type: ignore[misc]
    """Logs the network's certified bound and its largest layers every `every_n_steps` optimizer steps.

    The metrics are logged by `trainer.log`: they land in `trainer.state.log_history` and with whatever the arguments
    `report_to`, under `lipschitz/`, as `lipcheck_monitor.metrics` names them. Certified bounds, sampled ones and the
    surrogate of a `LipschitzTrainer` have names of their own. Add it with `trainer.add_callback`, which it has to be
    given the trainer for.

    A model of tokens is audited from behind its embedding table, at an `example` of embeddings; one of images at an
    `example` with its batch axis, or at the size in its config. `check` are further options of `lipcheck.check`.

    Training ends where the network's bound is above 10 ** `max_log10_bound`, infinite, or not claimed.

    Errors: ValueError for arguments that mean nothing; those of `lipcheck.check` in training.
    """

    def __init__(
        self,
        trainer: Any,
        every_n_steps: int = 100,
        *,
        top: int = 5,
        example: Tensor | None = None,
        check: Mapping[str, Any] | None = None,
        max_log10_bound: float | None = None,
    ) -> None:
        if not hasattr(trainer, "log") or not hasattr(trainer, "accelerator"):
            raise ValueError(f"trainer is a {type(trainer).__name__}; give the Trainer, then add_callback the callback")
        self.trainer = trainer
        self.monitor = Monitor(every_n_steps, top, max_log10_bound, dict(check or {}))
        self.example = example
        self.report: Report | None = None  # the latest

    def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **_: Any) -> None:
        """The audit, where one is due."""
        if model is None or not self.monitor.due(state.global_step):
            return
        model = self.trainer.accelerator.unwrap_model(model)
        network, example, prefix = audited(model, self.example)
        self.report = self.monitor.audit(network, example)
        found = {
            name.replace(f"/layer/{prefix}", "/layer/"): v for name, v in self.monitor.metrics(self.report).items()
        }
        value = getattr(self.trainer, "lipschitz_value", None)
        if value is not None:
            found[SURROGATE] = float(value)
        # Logging takes back the wish of the trainer's own flow to log at this step.
        wish = control.should_log
        self.trainer.log(found)
        control.should_log = wish
        if self.monitor.exceeded(self.report):
            control.should_training_stop = True
