"""`lipcheck rescale`: the file that it writes, audited by itself, keeps every layer under the limit."""

import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import lipcheck
from lipcheck import cli

WEIGHTED = ("conv1d", "conv2d", "conv3d", "linear")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a network whose matrices have the norms 3, 0.5 and 2, the last two with one weight in common."""
    (tmp_path / "rescaled_network.py").write_text("""
import torch
from torch import nn

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(2, 2, bias=False) for _ in range(3))
        self.fourth = nn.Linear(2, 2, bias=False)
        self.fourth.weight = self.third.weight
        for module, norm in ((self.first, 3.0), (self.second, 0.5), (self.third, 2.0)):
            module.weight.data = torch.diag(torch.tensor([norm, 0.25]))

    def forward(self, x):
        return self.fourth(self.third(self.second(self.first(x).relu()).relu()).relu())

def build():
    return Network()
""")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    save_file({"weight": torch.eye(2)}, "w.safetensors")
    return tmp_path


def largest(report) -> float:
    """The largest upper end of what the network applies at its convolutions and linear layers."""
    uppers = [(layer.merged or layer.bound).upper for layer in report.layers if layer.kind in WEIGHTED]
    assert uppers
    return max(uppers)


@pytest.mark.parametrize("limit", ["0.7"])
def test_the_demo_rescaled_keeps_every_layer_under_the_limit(tmp_path, capsys, limit):
    path = tmp_path / "out.safetensors"
    assert cli.main(["rescale", "demo", "--max-norm", limit, "-o", str(path), "-q"]) == 0
    out = capsys.readouterr().out
    assert f"certified: each is at most {float(limit):g}" in out
    assert out.rstrip().endswith(f"lipcheck {path} --arch demo")
    report = lipcheck.check(str(path), arch="demo", samples=0)
    assert largest(report) <= float(limit)
    assert all(bound.kind == "certified" for layer in report.layers for bound in [layer.merged or layer.bound])
    with safe_open(path, framework="pt") as file:
        told = file.metadata()
    assert told["format"] == "pt"
    assert (told["model"], float(told["max_norm"])) == ("demo", float(limit))


@pytest.mark.slow
def test_mobilenetv2_rescaled_keeps_every_layer_under_the_limit(tmp_path):
    path = tmp_path / "out.safetensors"
    size = ["--input", "3x64x64", "-q"]
    assert cli.main(["rescale", "mobilenetv2_100", "--weights", "random", "-o", str(path), *size]) == 0
    report = lipcheck.check(str(path), arch="mobilenetv2_100", input_size=(3, 64, 64), samples=0)
    assert len([layer for layer in report.layers if layer.kind in WEIGHTED]) == 53
    assert largest(report) <= 1


def test_layers_under_the_limit_keep_their_weights(here, capsys):
    assert cli.main(["rescale", "rescaled_network:build", *OUT]) == 0
    out = capsys.readouterr().out
    rows = [line.split()[0] for line in out.splitlines() if "…" in line]
    # The graph has one name for the two layers with one weight.
    assert rows[0] == "first"
    assert "2 of 3 layers rescaled" in out
    held = load_file("out.safetensors")
    assert torch.equal(held["second.weight"], torch.diag(torch.tensor([0.5, 0.25])))
    for name in ("first", "third", "fourth"):
        norm = torch.linalg.matrix_norm(held[f"{name}.weight"].double(), ord=2).item()
        assert 0.999 <= norm <= 1
    report = lipcheck.check("out.safetensors", arch="rescaled_network:build", input_size=(2,))
    assert largest(report) <= 1


OUT = ["--input", "2", "-o", "out.safetensors", "-q"]


def test_a_limit_above_all_norms_writes_the_weights_as_they_are(here, capsys):
    assert cli.main(["rescale", "rescaled_network:build", "--max-norm", "9", *OUT]) == 0
    assert "0 of 3 layers rescaled; certified: each is at most 9" in capsys.readouterr().out
    assert torch.equal(load_file("out.safetensors")["first.weight"], torch.diag(torch.tensor([3.0, 0.25])))


def test_a_file_that_is_there_is_not_replaced_unasked(here, capsys):
    line = ["rescale", "rescaled_network:build", *OUT]
    (here / "out.safetensors").write_bytes(b"precious")
    assert cli.main(line) == 2
    assert "is there already; give --force" in capsys.readouterr().err
    assert (here / "out.safetensors").read_bytes() == b"precious"
    assert cli.main([*line, "--force"]) == 0
    assert len(load_file("out.safetensors")) == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["demo"], "--output is missing|option '--output'"),
        (["demo", "-o", "x.pth"], "x.pth: the weights are written as safetensors"),
        (["demo", "-o", "no/x.safetensors"], "cannot be written"),
        (["demo", "-o", "x.safetensors", "--max-norm", "0"], "the largest norm is 0.0; give a positive number"),
        (["demo", "-o", "x.safetensors", "--max-norm", "nan"], "the largest norm is nan"),
        (["w.safetensors", "-o", "x.safetensors"], "weights alone do not say how they are applied; give --arch NAME"),
        (["gone.pth", "--arch", "demo", "-o", "x.safetensors"], "there is no such file"),
        (["w.safetensors", "--arch", "demo", "-o", "x.safetensors"], "weights do not fit the model"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_writes_nothing(here, capsys, words, message):
    before = sorted(here.iterdir())
    assert cli.main(["rescale", *words, *(["-q"] if len(words) > 1 else [])]) == 2
    captured = capsys.readouterr()
    assert any(part.lower() in captured.err.lower() for part in message.split("|"))
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert [path for path in sorted(here.iterdir()) if path.name != "__pycache__"] == before


def test_a_model_that_takes_its_input_by_name_is_rescaled_too(tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=16,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config)
    nn.init.normal_(model.classifier.weight, std=9)
    model.save_pretrained(tmp_path / "model")
    out = tmp_path / "out.safetensors"
    assert cli.main(["rescale", str(tmp_path / "model"), "-o", str(out), "-q"]) == 0
    assert "classifier " in capsys.readouterr().out
    report = lipcheck.check(str(out), arch=str(tmp_path / "model"), samples=0)
    assert largest(report) <= 1
    assert math.isfinite(report.network.log10_upper)
