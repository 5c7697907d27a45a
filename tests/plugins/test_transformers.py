"""The callback and the Trainer of `lipcheck_transformers` in real runs: the log, the penalty's gradient, the budget."""

import json
import math

import pytest
import tiny_training
import torch
from torch import nn

import lipcheck
from lipcheck.sources.runs import checkpoints
from lipcheck.training import LipschitzPenalty

pytestmark = pytest.mark.filterwarnings("ignore")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

UPPER = "lipschitz/certified/network_log10_upper"
SURROGATE = "lipschitz/surrogate/penalty"


class Images(nn.Module):
    """The tiny network as transformers calls it."""

    main_input_name = "pixel_values"

    def __init__(self, weight=0.0):
        super().__init__()
        self.body = tiny_training.body()
        self.penalty, self.weight = LipschitzPenalty(self.body) if weight else None, weight

    def forward(self, pixel_values, labels=None):
        logits = self.body(pixel_values)
        if labels is None:
            return logits
        loss = nn.functional.cross_entropy(logits, labels)
        return {"loss": loss + self.weight * self.penalty() if self.weight else loss, "logits": logits}


class Rows(torch.utils.data.Dataset):
    """Inputs and labels under the names that a model takes them by."""

    def __init__(self, name="pixel_values"):
        self.name, self.held = name, tiny_training.examples()

    def __len__(self):
        return len(self.held)

    def __getitem__(self, place):
        x, label = self.held[place]
        return {self.name: x if self.name == "pixel_values" else torch.arange(6) + place % 3, "labels": label}


def trainer(model, folder, *, kind=None, rows=None, options=None, **given):
    arguments = {
        **{"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 0.05, "lr_scheduler_type": "constant"},
        **{"optim": "sgd", "report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"},
        **{"logging_steps": 2, "train_sampling_strategy": "sequential", **given},
    }
    kind = kind or transformers.Trainer
    rows = rows or Rows()
    return kind(model, transformers.TrainingArguments(str(folder), **arguments), train_dataset=rows, **(options or {}))


def callback(*arguments, **options):
    from lipcheck_transformers import LipschitzCallback

    return LipschitzCallback(*arguments, **options)


def penalised(model, folder, weight, **given):
    from lipcheck_transformers import LipschitzTrainer

    options = {"lipschitz_weight": weight, **given.pop("options", {})}
    return trainer(model, folder, kind=LipschitzTrainer, options=options, **given)


def logged(run, name=UPPER):
    return [entry for entry in run.state.log_history if name in entry]


def test_the_log_has_the_bounds_and_the_trainer_its_own_figures_beside_them(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = Images()
    example = torch.zeros(1, *tiny_training.SIZE)
    run = penalised(
        model, tmp_path, 0.01, report_to=["tensorboard"], save_strategy="steps", save_steps=2
    )  # fmt: skip
    run.add_callback(callback(run, 2, top=1, example=example))
    run.train()
    assert [entry["step"] for entry in logged(run)] == [2, 4]
    assert [entry["step"] for entry in logged(run, "loss")] == [2, 4]
    report = lipcheck.check(model, example=example, samples=0)
    last = logged(run)[-1]
    assert last[UPPER] == report.network.log10_upper
    assert math.isfinite(last[SURROGATE])
    assert sum("/layer/" in name for name in last) == 1
    (events,) = (tmp_path / "runs").rglob("events*")
    board = EventAccumulator(str(events))
    board.Reload()
    (name,) = [tag for tag in board.Tags()["scalars"] if tag.endswith(UPPER)]
    assert [event.step for event in board.Scalars(name)] == [2, 4]
    assert [one.name for one in checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-4"]
    json.dumps(run.state.log_history)


@pytest.mark.parametrize(("accumulate", "clip"), [(1, 0.0), (3, 0.05)])
def test_the_penalty_is_what_it_would_be_in_the_loss(tmp_path, accumulate, clip):
    given = {"gradient_accumulation_steps": accumulate, "max_grad_norm": clip, "max_steps": 2}
    mine, theirs, without = Images(), Images(0.2), Images()
    run = penalised(mine, tmp_path, 0.2, **given)
    run.train()
    trainer(theirs, tmp_path, **given).train()
    trainer(without, tmp_path, **given).train()
    for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(mine.body[0].weight, without.body[0].weight)


def test_a_gradient_scaler_changes_nothing(tmp_path):
    """The penalty joins gradients that are still scaled."""
    mine, theirs = Images(), Images(0.2)
    run = penalised(mine, tmp_path, 0.2, max_steps=2, max_grad_norm=0.0)
    run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    run.train()
    trainer(theirs, tmp_path, max_steps=2, max_grad_norm=0.0).train()
    for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_training_ends_at_the_budget(tmp_path):
    for budget, steps in ((-9, 2), (9, 4)):
        run = trainer(Images(), tmp_path)
        run.add_callback(callback(run, 2, max_log10_bound=budget, example=torch.zeros(1, *tiny_training.SIZE)))
        run.train()
        assert run.state.global_step == steps


def test_a_model_of_tokens_is_audited_from_behind_its_table(tmp_path):
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=16, num_labels=3,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config)
    run = trainer(model, tmp_path, rows=Rows("input_ids"), max_steps=1)
    watch = callback(run, 1, top=99)
    run.add_callback(watch)
    run.train()
    (entry,) = logged(run)
    assert math.isfinite(entry[UPPER])
    assert watch.report.model.input_shape == (16, 8)
    # Layers have the names that they have in the model.
    named = {name.rpartition("/")[2] for name in entry if "/layer/" in name}
    assert "classifier" in named
    assert named <= {name for name, _ in model.named_modules()}


def test_images_are_as_large_as_the_config_says():
    from lipcheck_transformers.inputs import audited

    config = transformers.ViTConfig(
        image_size=(8, 12), num_channels=2, patch_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8,
    )  # fmt: skip
    model, example, prefix = audited(transformers.ViTForImageClassification(config), None)
    assert (tuple(example.shape), prefix) == ((1, 2, 8, 12), "")
    assert model(example).logits.shape == (1, 2)
    assert audited(Images(), None)[1] is None


def test_what_means_nothing_is_told(tmp_path):
    with pytest.raises(ValueError, match="trainer is a int; give the Trainer"):
        callback(100)
    with pytest.raises(ValueError, match="penalty_weight is -1"):
        penalised(Images(), tmp_path, -1)
    run = trainer(Images(), tmp_path)
    with pytest.raises(ValueError, match="every_n_steps is 0"):
        callback(run, 0)
    run.add_callback(callback(run, 1))
    with pytest.raises(lipcheck.LipcheckError, match="does not say its input size"):
        run.train()


@pytest.mark.parametrize("service", ["mlflow", "wandb"])
def test_other_services_get_the_same_names(tmp_path, monkeypatch, service):
    pytest.importorskip(service)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/runs.db")
    run = trainer(Images(), tmp_path, report_to=[service])
    run.add_callback(callback(run, 2, example=torch.zeros(1, *tiny_training.SIZE)))
    if service == "mlflow":
        import mlflow

        run.train()
        found = mlflow.search_runs(search_all_experiments=True, output_format="list")
        assert max(found, key=lambda one: one.info.start_time).data.metrics[UPPER] == logged(run)[-1][UPPER]
    else:
        import wandb

        run.train()
        names = [name for name in dict(wandb.run.summary) if name.endswith(UPPER)]
        assert [wandb.run.summary[name] for name in names] == [logged(run)[-1][UPPER]]
        wandb.finish()
