"""The recipe of docs/frameworks.md in a training step as timm's script makes it, with timm's own parts."""

import argparse
import csv
import re
from pathlib import Path

import pytest
import torch

from lipcheck.sources.checkpoint import read_checkpoint
from lipcheck.sources.runs import checkpoints
from lipcheck.training import LipschitzPenalty

pytestmark = pytest.mark.filterwarnings("ignore")
timm = pytest.importorskip("timm")
task_module = pytest.importorskip("timm.task")

PAGE = Path(__file__).parents[2] / "docs" / "frameworks.md"
UPPER = "lipschitz/certified/network_log10_upper"
ARCHITECTURE = "test_resnet"
SIZE = (3, 32, 32)


@pytest.fixture(scope="module")
def recipe():
    """What the page's block of code defines."""
    (block,) = re.findall(r"<!-- timm recipe -->\n```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict = {}
    exec(compile(block, str(PAGE), "exec"), names)
    return names


def network():
    torch.manual_seed(0)
    return timm.create_model(ARCHITECTURE, num_classes=5).train()


def data():
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(2, *SIZE, generator=generator), torch.tensor([0, 3])) for _ in range(4)]


def steps(task, model, optimizer, *, precision):
    """The batches of timm's train_one_epoch: autocast, accumulation over two, NativeScaler with clipped gradients."""
    from timm.models import model_parameters
    from timm.utils import NativeScaler

    scaler = NativeScaler(device="cpu")
    for index, (input, target) in enumerate(data()):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            loss = task(input, target)["loss"] / 2
        assert loss.dtype == torch.float32
        scaler(
            loss, optimizer, clip_grad=0.5, clip_mode="norm", parameters=model_parameters(model),
            need_update=index % 2 == 1,
        )  # fmt: skip
        if index % 2 == 1:
            optimizer.zero_grad()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_penalised_task_trains_as_timm_trains(recipe, precision):
    """The same weights as with the penalty's gradient added by hand in front of each step."""
    mine, plain = network(), network()
    task = recipe["PenalisedTask"](mine, weight=0.05)
    steps(task, mine, torch.optim.SGD(mine.parameters(), lr=0.1), precision=precision)
    penalty = LipschitzPenalty(plain)
    base = task_module.ClassificationTask(plain)

    def by_hand(input, target):
        result = base(input, target)
        with torch.autocast("cpu", enabled=False):
            result["loss"] = result["loss"] + 0.05 * penalty()
        return result

    steps(by_hand, plain, torch.optim.SGD(plain.parameters(), lr=0.1), precision=precision)
    for one, other in zip(mine.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    fresh = network()
    base = task_module.ClassificationTask(fresh)
    steps(base, fresh, torch.optim.SGD(fresh.parameters(), lr=0.1), precision=precision)
    first, without = (next(iter(one.parameters())) for one in (mine, fresh))
    assert not torch.allclose(first, without)


def test_the_summary_and_the_checkpoints_of_timm_tell_the_same(recipe, tmp_path):
    from timm.utils import CheckpointSaver, update_summary

    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = argparse.Namespace(model=ARCHITECTURE)
    saver = CheckpointSaver(model, optimizer, args=options, checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path))
    for epoch in range(2):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
        found: dict = {"loss": 1.0}
        recipe["log_bounds"](model, torch.zeros(1, *SIZE), found)
        update_summary(epoch, found, {}, str(tmp_path / "summary.csv"))
        saver.save_checkpoint(epoch, metric=float(epoch))
    rows = list(csv.DictReader((tmp_path / "summary.csv").read_text().splitlines()))
    assert float(rows[1][f"train_{UPPER}"]) > float(rows[0][f"train_{UPPER}"])
    kept = checkpoints(tmp_path)
    assert [one.name for one in kept] == ["checkpoint-0.pth.tar", "checkpoint-1.pth.tar"]  # last and best are links
    held = read_checkpoint(kept[-1].path).tensors
    assert all(torch.equal(held[name], tensor) for name, tensor in model.state_dict().items())
