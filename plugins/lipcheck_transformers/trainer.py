"""Trainers whose steps penalise the norms of the model's layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lipcheck_monitor import add_gradient
from lipcheck_monitor.figures import penalty_options, weight_of
from transformers import Trainer

if TYPE_CHECKING:
    from torch import Tensor

    from lipcheck import training


class PenalisedSteps:
    """Put in front of a Trainer's class, adds the gradient of weight times `lipcheck.training.LipschitzPenalty`.

    It is added once for each optimizer step, behind the last of the batches that are accumulated for it, before a
    gradient scaler is undone and before gradients are clipped. The loss that is logged is without it; a
    `LipschitzCallback` logs the penalty's value as a surrogate.

    Units: `lipschitz_weight` is a number of at least 0; `lipschitz_penalty` are the options of that penalty.
    Errors: ValueError for a weight that is none; those of the penalty.
    """

    def __init__(
        self,
        *args: Any,
        lipschitz_weight: float = 0.0,
        lipschitz_penalty: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.lipschitz_weight = weight_of(lipschitz_weight)
        self.lipschitz_options = penalty_options(lipschitz_penalty, self.lipschitz_weight)
        self.lipschitz_value: Tensor | None = None  # of the penalty, at the latest step
        self._lipschitz: training.LipschitzPenalty | None = None
        super().__init__(*args, **kwargs)

    def training_step(self, model: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The Trainer's own step, and behind the last one before the optimizer's the penalty's gradient."""
        loss: Tensor = super().training_step(model, *args, **kwargs)  # type: ignore[misc]
        accelerator = self.accelerator  # type: ignore[attr-defined]
        if self.lipschitz_weight and accelerator.sync_gradients:
            network = accelerator.unwrap_model(model)
            if self._lipschitz is None:
                import lipcheck

                self._lipschitz = lipcheck.training.LipschitzPenalty(network, **self.lipschitz_options)
            scaler = accelerator.scaler
            scale = 1.0 if scaler is None else float(scaler.get_scale())
            self.lipschitz_value = add_gradient(
                self._lipschitz, self.lipschitz_weight, network.parameters(), scale=scale
            )
        return loss


class LipschitzTrainer(PenalisedSteps, Trainer):  # type: ignore[misc]
    """transformers' Trainer with a penalty on the norms of the model's layers."""
