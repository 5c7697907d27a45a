"""`LipschitzMonitor` in real Trainers of Lightning: loggers, the penalty's gradient, the budget."""

import csv
import math
import sys
from pathlib import Path

import pytest
import tiny_training as training
import torch
from torch import nn

import lipcheck
from lipcheck.sources.runs import checkpoints

# Lightning's own imports and its use of torch's internals are no business of these tests.
pytestmark = pytest.mark.filterwarnings("ignore")
pl = pytest.importorskip("lightning.pytorch")

UPPER = "lipschitz/certified/network_log10_upper"
SURROGATE = "lipschitz/surrogate/penalty"


def module(base=None, **options):
    """A LightningModule of the tiny network, trained by SGD; `weight` puts the penalty into its own loss."""
    base = base or pl.LightningModule
    weight = options.pop("weight", 0.0)

    class Classifier(base):
        def __init__(self):
            super().__init__()
            self.body = training.body()
            self.penalty = lipcheck.training.LipschitzPenalty(self.body) if weight else None

        def forward(self, x):
            return self.body(x)

        def training_step(self, batch, _):
            loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
            return loss + weight * self.penalty() if weight else loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Classifier()


def fit(network, *callbacks, framework=None, **options):
    """The trainer after it trained the network."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    given = {"max_steps": 4, "accelerator": "cpu", "logger": False, **quiet, **options}
    trainer = (framework or pl).Trainer(callbacks=list(callbacks), **given)
    trainer.fit(network, training.batches())
    return trainer


def monitor(*arguments, **options):
    from lipcheck_lightning import LipschitzMonitor

    return LipschitzMonitor(*arguments, **options)


def test_the_loggers_have_the_bounds_of_the_network_as_it_was(tmp_path):
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loggers = [CSVLogger(tmp_path, "csv"), TensorBoardLogger(tmp_path, "board")]
    network, watch = module(), monitor(2, top=1, penalty_weight=0.01)
    keep = ModelCheckpoint(tmp_path / "kept", every_n_train_steps=2, save_top_k=-1, save_last="link")
    trainer = fit(network, watch, keep, logger=loggers, enable_checkpointing=True)
    rows = list(csv.DictReader(Path(loggers[0].log_dir, "metrics.csv").read_text().splitlines()))
    rows = [row for row in rows if row.get(UPPER)]
    assert [row["step"] for row in rows] == ["2", "4"]
    # The last row is about the network as it is now; torch trained it in training mode, and left it there.
    report = lipcheck.check(network, example=torch.zeros(1, *training.SIZE), samples=0)
    assert float(rows[-1][UPPER]) == report.network.log10_upper == watch.report.network.log10_upper
    assert float(trainer.callback_metrics[UPPER]) == report.network.log10_upper
    largest = max(report.layers, key=lambda layer: (layer.merged or layer.bound).upper)
    assert float(rows[-1][f"lipschitz/certified/layer/{largest.layer}"]) == (largest.merged or largest.bound).upper
    assert float(rows[-1]["lipschitz/sampled/network_lower"]) <= 10 ** float(rows[-1][UPPER])
    assert math.isfinite(float(rows[-1][SURROGATE]))
    board = EventAccumulator(loggers[1].log_dir)
    board.Reload()
    assert [event.step for event in board.Scalars(UPPER)] == [2, 4]
    assert board.Scalars(UPPER)[-1].value == pytest.approx(float(rows[-1][UPPER]))
    # What Lightning wrote is what `lipcheck watch` finds, each checkpoint once.
    assert [one.step for one in checkpoints(tmp_path / "kept")] == [(2,), (4,)]


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_penalty_is_what_it_would_be_in_the_loss(clip, accumulate):
    """Weights after steps with it, with batches accumulated and gradients clipped or not."""
    options = {"accumulate_grad_batches": accumulate, "gradient_clip_val": clip, "max_steps": 2}
    mine, theirs, without = module(), module(weight=0.2), module()
    fit(mine, monitor(100, penalty_weight=0.2, module="body"), **options)
    fit(theirs, **options)
    fit(without, **options)
    for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(mine.body[0].weight, without.body[0].weight)


def test_a_gradient_scaler_changes_nothing():
    """Gradients are scaled while they are made, and the scale is taken back before the penalty joins them."""
    from lightning.pytorch.plugins import MixedPrecision

    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    mixed = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    mixed.autocast_context_manager = lambda: torch.autocast("cpu", enabled=False)
    mine, theirs = module(), module(weight=0.2)
    fit(mine, monitor(100, penalty_weight=0.2), plugins=[mixed])
    fit(theirs)
    for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_the_penalty_lowers_the_bound():
    with_it, without = monitor(6, penalty_weight=3.0), monitor(6)
    fit(module(), with_it, max_steps=6)
    fit(module(), without, max_steps=6)
    assert with_it.report.network.log10_upper < without.report.network.log10_upper - 0.1


def test_training_ends_at_the_budget():
    assert fit(module(), monitor(2, max_log10_bound=-9)).global_step == 2
    assert fit(module(), monitor(2, max_log10_bound=9)).global_step == 4


def test_what_means_nothing_is_told():
    for options, message in (({"penalty_weight": -1}, "penalty_weight"), ({"top": -1}, "top is -1")):
        with pytest.raises(ValueError, match=message):
            monitor(**options)
    with pytest.raises(ValueError, match="module is 'head'; the LightningModule has body"):
        fit(module(), monitor(1, module="head"))


def test_the_older_package_has_the_same_callback():
    """Both packages are loaded here, so that the callback is one for either."""
    older = pytest.importorskip("pytorch_lightning")
    sys.modules.pop("lipcheck_lightning.callback", None)
    watch = monitor(2)
    assert isinstance(watch, older.Callback)
    assert isinstance(watch, pl.Callback)
    fit(module(older.LightningModule), watch, framework=older)
    assert watch.report.network.log10_upper < math.inf


@pytest.mark.parametrize("name", ["MLFlowLogger", "WandbLogger"])
def test_other_loggers_take_the_names(tmp_path, monkeypatch, name):
    pytest.importorskip("mlflow" if name == "MLFlowLogger" else "wandb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    from lightning.pytorch import loggers

    if name == "MLFlowLogger":
        logger = loggers.MLFlowLogger(tracking_uri=f"sqlite:///{tmp_path}/runs.db")
    else:
        logger = loggers.WandbLogger(save_dir=tmp_path, offline=True)
    watch = monitor(2, penalty_weight=0.01)
    fit(module(), watch, logger=logger)
    if name == "MLFlowLogger":
        kept = logger.experiment.get_metric_history(logger.run_id, UPPER)
        assert [metric.step for metric in kept] == [2, 4]
        assert kept[-1].value == watch.report.network.log10_upper
    else:
        assert logger.experiment.summary[UPPER] == watch.report.network.log10_upper
        logger.experiment.finish()
