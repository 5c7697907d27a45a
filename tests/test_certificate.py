"""Certificates of whole networks: a true one is verified, and whatever is changed in it or in the model is named."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import networks
import pytest
import torch
from safetensors.numpy import save_file
from torch import nn

import lipcheck
from lipcheck import certificate as certificates
from lipcheck import cli
from lipcheck.bound import Bound
from lipcheck.capture import capture
from lipcheck.certificate import Certificate, LayerCertificate, digest, read, write
from lipcheck.certifying import certificate_of
from lipcheck.errors import CertificateError, OutputError, UsageError
from lipcheck.proof import CellsProof, CopiesProof, GridProof, LatticesProof, MatrixProof, ProductProof, ScaledProof
from lipcheck.rules import DEFAULT_RULES, operator_of
from lipcheck.simplify import simplify
from lipcheck.sources import LoadedModel

SIZE = (3, 48, 48)


def network() -> nn.Module:
    """Every kind of layer that has a proof of its own."""
    torch.manual_seed(3)
    body = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        networks.normalised(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=2),
        nn.Conv2d(12, 12, 3, padding=1, padding_mode="circular"),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(12, 12, 3, padding=1, groups=12),
        networks.Scaled(12),
        nn.ConvTranspose2d(12, 6, 4, stride=2, padding=1),
        nn.BatchNorm2d(6),
        nn.Conv2d(6, 6, 3, padding=2, dilation=2, padding_mode="reflect"),
        nn.Conv2d(6, 6, 3, padding=2, dilation=2),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(864, 5),
        nn.LayerNorm(5),
    )
    # Different modules, one tensor: the shared layer is stated twice.
    body.append(networks.Twice(nn.Linear(5, 5)))
    return body.eval()


@pytest.fixture(scope="module")
def true(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("certificates") / "true.safetensors"
    lipcheck.check(network(), input_size=SIZE, certificate=path, samples=0)
    return path


def verify(certificate: Path, model: nn.Module | None = None) -> lipcheck.Verification:
    return lipcheck.verify(certificate, model or network(), input_size=SIZE)


def failures(certificate: Path, model: nn.Module | None = None) -> dict[str, str]:
    """Problems by layer, "" for the certificate as a whole."""
    found = verify(certificate, model)
    assert not found.ok
    named = {verdict.layer: "; ".join(verdict.problems) for verdict in found.failures}
    return named | ({"": "; ".join(found.problems)} if found.problems else {})


def test_a_true_certificate_is_verified(true):
    found = verify(true)
    assert found.ok, [f"{v.layer} {v.problems}" for v in found.failures]
    layers = read(true).layers
    kinds = {type(layer.proof).__name__ for layer in layers}
    assert {"GridProof", "MatrixProof", "DiagonalProof", "CopiesProof", "ProductProof"} <= kinds
    assert {layer.role for layer in layers} == {"own", "merged"}
    assert len(found.layers) == len(layers) > 15
    assert {layer.occurrence for layer in layers if layer.layer.endswith("shared")} == {0, 1}


def test_another_copy_of_the_weights_is_the_same_model(true):
    assert verify(true, network()).ok


def changed(true: Path, tmp_path: Path, name: str, change: Callable[[LayerCertificate], LayerCertificate]) -> Path:
    """A copy of the certificate with one layer's own entry changed."""
    whole = read(true)
    layers = [change(one) if (one.layer, one.role) == (name, "own") else one for one in whole.layers]
    path = tmp_path / "changed.safetensors"
    write(replace(whole, layers=tuple(layers)), path)
    return path


def lowered(layer: LayerCertificate) -> LayerCertificate:
    assert isinstance(layer.proof, GridProof)
    return replace(layer, proof=replace(layer.proof, mu=layer.proof.mu * 0.98))


def coarser(layer: LayerCertificate) -> LayerCertificate:
    assert isinstance(layer.proof, GridProof)
    proof = replace(layer.proof, points=tuple(m - 2 for m in layer.proof.points))
    from lipcheck.verification import counts_of

    return replace(layer, proof=proof, frequencies=counts_of(proof))


def dropped(layer: LayerCertificate) -> LayerCertificate:
    return replace(layer, frequencies=(layer.frequencies[0] - 1,))


def restrided(layer: LayerCertificate) -> LayerCertificate:
    return replace(layer, facts={**layer.facts, "stride": (1, 1)})


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("0", lowered, "is not proved at frequency ("),
        ("0", coarser, "points does not embed axis 0, an input of 48 with padding 1: needs 49"),
        ("0", dropped, " frequencies"),
        ("3", restrided, "stride is (1, 1) in the certificate, (2, 2) in the model"),
        ("0", lambda one: replace(one, upper=one.upper * 0.9), "the certificate states"),
        ("0", lambda one: replace(one, proof=None), "no proof"),
        ("0", lambda one: replace(one, facts={**one.facts, "uncertainty": 1}), "uncertainty is 1 in the certificate"),
        ("0", lambda one: replace(one, facts={"kind": "matrix"}), "kind is matrix in the certificate, convolution"),
        ("0", lambda one: replace(one, layer="99"), "is in the certificate and not in the model"),
        ("0", lambda one: replace(one, constants=()), "weight is not in the certificate"),
        ("4", lambda one: replace(one, proof=replace(one.proof, half=(1, 1))), "is not the circular one"),
        ("5", lambda one: replace(one, proof=CopiesProof(1)), "copies is 1 in the certificate, 4 in the model"),
    ],
)
def test_a_changed_certificate_is_caught_and_named(true, tmp_path, name, change, said):
    found = failures(changed(true, tmp_path, name, change))
    assert said in "; ".join(found.values())
    assert set(found) <= {name, "99"}


def test_a_dropped_frequency_is_counted(true, tmp_path):
    grid = next(one for one in read(true).layers if one.layer == "0")
    said = failures(changed(true, tmp_path, "0", dropped))["0"]
    assert said == f"covers {grid.frequencies[0] - 1} of {grid.frequencies[0]} frequencies"


def test_a_dropped_layer_is_missed(true, tmp_path):
    whole = read(true)
    path = tmp_path / "shorter.safetensors"
    write(replace(whole, layers=whole.layers[1:]), path)
    assert failures(path) == {"0": "is not in the certificate"}
    write(replace(whole, layers=()), path)
    assert "states no bound" in failures(path)[""]
    write(replace(whole, layers=(*whole.layers, whole.layers[0])), path)
    assert failures(path) == {"": "the certificate has more than one entry for 0"}


@pytest.mark.parametrize(
    ("change", "layers", "said"),
    [
        (lambda model: model[0].weight.data[0, 0, 0, 0].add_(1e-3), {"0"}, "weight differs (sha256 "),
        (lambda model: model[1].running_var.mul_(1.01), {"0", "1"}, "running_var differs"),
        (lambda model: setattr(model[3], "stride", (1, 1)), None, "stride is (2, 2) in the certificate, (1, 1) in"),
        (lambda model: model[14].weight.data.neg_(), {"14"}, "weight differs"),
    ],
)
def test_a_changed_model_is_caught_and_named(true, change, layers, said):
    model = network()
    if layers is None:  # an input of another size would not fit the last layer
        model = model[:4]
    change(model)
    found = failures(true, model)
    assert said in "; ".join(found.values())
    assert layers is None or set(found) == layers


def test_what_moves_the_output_alone_is_no_change(true):
    model = network()
    model[1].running_mean.add_(1)
    model[14].bias.data.add_(1)
    assert verify(true, model).ok


def test_another_input_size_is_named(true):
    found = lipcheck.verify(true, network()[:5], input_size=(3, 40, 40))
    assert "3×48×48 in the certificate, 3×40×40 here" in found.problems[0]


def test_a_certificate_has_no_weights_and_is_small(tmp_path):
    models = pytest.importorskip("torchvision.models")
    model = models.resnet18().eval()
    example = torch.randn(1, 3, 224, 224)
    graph, _ = capture(model, example, known=DEFAULT_RULES)
    steps = simplify(graph, [operator_of(node, DEFAULT_RULES) for node in graph.nodes])
    proof = ScaledProof(1.0, GridProof(1.23456789012345678, (115, 115), (1, 1), (False, False)))
    loaded = LoadedModel(model, example, "resnet18", "torchvision", "random")
    made = certificate_of(loaded, "random", 0, "lipcheck", steps, lambda _: Bound(0.5, 1.5, "embedding", proof=proof))
    write(made, tmp_path / "resnet18")
    assert (tmp_path / "resnet18").stat().st_size < 200_000
    assert len(made.layers) > 60
    assert read(tmp_path / "resnet18") == made


def test_every_proof_survives_the_file(true, tmp_path):
    whole = read(true)
    cells = CellsProof(1.0, (2, 2), (4, 4), ((0, 0, 0), (1, 3, 5)))
    proof = ProductProof((ScaledProof(0.5, LatticesProof((cells, MatrixProof(2.0)))), CopiesProof(3)))
    write(replace(whole, layers=(replace(whole.layers[0], proof=proof),)), tmp_path / "file")
    assert read(tmp_path / "file").layers[0].proof == proof


def test_a_digest_covers_the_type_the_shape_and_the_bytes():
    zeros = torch.zeros(4, 6)
    others = [zeros.reshape(6, 4), zeros.int(), -zeros, zeros[:, :5], zeros.double()]
    assert len({digest("w", tensor).sha256 for tensor in (zeros, *others)}) == 6
    assert digest("w", zeros.T.contiguous().T) == digest("w", zeros)
    assert digest("w", torch.zeros((), dtype=torch.bfloat16)).shape == ()


# Files


def document(true: Path) -> dict:
    header = true.read_bytes()
    length = struct.unpack("<Q", header[:8])[0]
    return json.loads(json.loads(header[8 : 8 + length])["__metadata__"]["lipcheck"])


def rewritten(path: Path, content: object) -> Path:
    save_file({}, str(path), {"lipcheck": content if isinstance(content, str) else json.dumps(content)})
    return path


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (["format"], "other", "format is 'other'"),
        (["version"], 2, "version is 2, this lipcheck reads 1"),
        (["version"], True, "version is True"),
        (["layers"], {}, "layers is dict"),
        (["layers", 0], 7, "expected an object"),
        (["layers", 0, "upper"], float("nan"), "NaN stands where a number"),
        (["layers", 0, "upper"], -1.0, "expected a finite number of at least 0"),
        (["layers", 0, "upper"], "1", "expected a number"),
        (["layers", 0, "role"], "both", "expected own or merged"),
        (["layers", 0, "occurrence"], True, "expected an integer"),
        (["layers", 0, "proof", "kind"], "faith", "expected one of zero, matrix"),
        (["layers", 0, "proof", "points"], [10**30], "expected an integer"),
        (["layers", 0, "proof", "points"], [1] * 100_000, "100000 long, at most"),
        (["layers", 0, "proof", "corrected"], [0, 1], "true and false"),
        (["layers", 0, "proof", "mu"], None, "mu is missing"),
        (["layers", 0, "layer"], "x" * 5000, "expected a string of at most"),
        (["layers", 0, "operator", "stride"], [None], "expected an integer"),
        (["layers", 0, "operator", "stride"], {}, "is a dict"),
        (["model", "seed"], -1, "model.seed is"),
        (["model", "input_shape"], [0], "model.input_shape is"),
    ],
)
def test_a_document_that_makes_no_sense_is_one_line(true, tmp_path, place, value, said):
    content = document(true)
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with pytest.raises(CertificateError) as caught:
        read(rewritten(tmp_path / "file", content))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def deep(levels: int) -> dict:
    proof: dict = {"kind": "zero"}
    for _ in range(levels):
        proof = {"kind": "scaled", "gain": 1.0, "inner": proof}
    return proof


def test_hostile_files(true, tmp_path):
    path = tmp_path / "file"
    content = document(true)
    content["layers"][0]["proof"] = deep(20)
    with pytest.raises(CertificateError, match="nested too deeply"):
        read(rewritten(path, content))
    for text in ("[" * 100_000, "{", "1" * 10_000, '"\\ud800"', "null", "[]"):
        with pytest.raises(CertificateError, match="no certificate"):
            read(rewritten(path, text))
    content = document(true)
    content["layers"][0]["proof"] = {"kind": "cells", "mu": 1, "degrees": [1], "points": [4], "cells": "gone"}
    with pytest.raises(CertificateError, match="names no tensor"):
        read(rewritten(path, content))
    for data in (b"", b"abc", b"\xff" * 16, struct.pack("<Q", 2**40) + b"{}", struct.pack("<Q", 2) + b"{}"):
        path.write_bytes(data)
        with pytest.raises(CertificateError, match="no certificate"):
            read(path)
    with pytest.raises(UsageError, match="cannot be read"):
        read(tmp_path / "missing")
    with pytest.raises(UsageError, match="cannot be read"):
        read(tmp_path)


def test_a_file_is_written_whole_or_not_at_all(true, tmp_path):
    whole: Certificate = read(true)
    with pytest.raises(OutputError, match="cannot be written"):
        write(whole, tmp_path / "no" / "file")
    write(whole, tmp_path / "file")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write(replace(whole, layers=()), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert certificates.read(tmp_path / "file").layers == ()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "link"]


# The command


def test_the_command(tmp_path, capsys):
    file = str(tmp_path / "demo.safetensors")
    assert cli.main(["demo", "--certificate", file, "--quiet", "--samples", "0"]) == 0
    capsys.readouterr()
    assert cli.main(["verify", file, "demo", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("verified: 31 of 31 bounds of demo proved again")
    assert out.count("\n") == 1
    whole = read(file)
    layers = [replace(one, upper=one.upper / 2) if n == 2 else one for n, one in enumerate(whole.layers)]
    write(replace(whole, layers=tuple(layers)), file)
    assert cli.main(["verify", file, "demo", "-q", "--threads", "1"]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith(f"{layers[2].layer}: {layers[2].op}")
    assert "the certificate states" in out[0]
    assert out[-1].startswith("NOT VERIFIED: 30 of 31")
    for wrong in (["verify", "/no/file", "demo"], ["verify", file, "no-such-model"], ["verify", file], ["verify"]):
        assert cli.main(wrong) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert cli.main(["demo", "--certificate", str(tmp_path / "no" / "file")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_the_check_by_hand_in_the_documentation(true):
    text = (Path(__file__).parent.parent / "docs" / "certificate.md").read_text(encoding="utf-8")
    names: dict = {}
    exec(text.partition("```python\n")[2].partition("```")[0], names)
    layers = [one for one in document(true)["layers"] if one["role"] == "own"]
    for index in (0, 4):
        layer = next(one for one in layers if one["layer"] == str(index))
        largest = names["largest_norm"](layer, network()[index].weight.detach().numpy())
        assert largest <= layer["proof"]["mu"] <= largest * 1.01


def test_the_documentation_names_every_proof():
    text = (Path(__file__).parent.parent / "docs" / "certificate.md").read_text(encoding="utf-8")
    for name, kind in certificates._KINDS.items():
        assert f"| `{name}` | {', '.join(f'`{field.name}`' for field in fields(kind))}".rstrip() in text


def test_a_certificate_of_another_network_says_so(tmp_path):
    path = tmp_path / "certificate.safetensors"
    lipcheck.check("demo", certificate=path, samples=0)
    found = lipcheck.verify(path, nn.Conv2d(1, 2, 3), example=torch.zeros(1, 1, 28, 28))
    assert not found.ok
    assert found.problems[0] == "the certificate is of demo, the model here is Conv2d"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--certificate {0}/pipe", "is no regular file"),
        ("--certificate {0}", "is no regular file"),
        ("--certificate -", "a certificate is a binary file"),
        ("--certificate {0}/same --json {0}/same", "give each its own file"),
    ],
)
def test_where_no_certificate_can_be_put(tmp_path, capsys, line, message):
    os.mkfifo(tmp_path / "pipe")
    assert cli.main(["demo", "-q", *line.format(tmp_path).split()]) == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / "pipe").is_fifo()
