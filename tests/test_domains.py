"""Domains: what they say is read or refused in a line, their ranges hold every input, their samples stay inside."""

from __future__ import annotations

import math
import struct
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import Function
from safetensors.torch import save_file
from torch import Tensor, nn

import lipcheck
from lipcheck.domains import Ball, Box, Domain
from lipcheck.errors import LipcheckError, SourceError, UsageError
from lipcheck.notation import read_domain
from lipcheck.opening import open_region, wanted_domain
from lipcheck.ranges import Range
from lipcheck.sources import LoadedModel
from lipcheck.sources.pixels import Pixels, timm_pixels, transformers_pixels

SHAPE = (1, 3, 4, 5)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET = Pixels(MEAN, STD, zoom=1 / 0.875)


def holds(within: Range, x: Tensor) -> bool:
    """Whether an input lies in all that the range claims."""
    x = x.double()
    assert within.center is not None
    away = x - within.center
    ball = float(torch.linalg.vector_norm(away)) <= math.exp(within.radius)
    rows = float(torch.linalg.vector_norm(away, dim=-1).max()) <= math.exp(within.rows)
    return bool(((within.low <= x) & (x <= within.high)).all()) and ball and rows


def loaded(shape: tuple[int, ...] = SHAPE, pixels: Pixels | None = None) -> LoadedModel:
    return LoadedModel(nn.Identity(), torch.zeros(shape), "name", "module", "as given", pixels=pixels)


# What is written.


@pytest.mark.parametrize(
    ("text", "kind", "numbers", "file"),
    [
        ("box:0,1", "box", (0, 1), ""),
        (" BOX: -1.5 , 2e3", "box", (-1.5, 2000), ""),
        ("box:.5,1.", "box", (0.5, 1), ""),
        ("ball:0.5", "ball", (0.5,), ""),
        ("ball:1e-3@a folder/cat@2.png", "ball", (0.001,), "a folder/cat@2.png"),
    ],
)
def test_what_is_written_is_read(text: str, kind: str, numbers: tuple[float, ...], file: str) -> None:
    found = read_domain(text)
    assert (found.kind, found.numbers, found.file) == (kind, numbers, file)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("bx:0,1", "did you mean box:0,1?"),
        ("bal:1", "did you mean ball:1?"),
        ("sphere:1", "write it like box:0,1"),
        ("box", "write it like box:0,1"),
        ("", "write it like box:0,1"),
        ("box:", "is no finite number"),
        ("box:0", "has not two ends; write a box like box:0,1"),
        ("box:0,1,2", "has not two ends"),
        ("box:1,0", "the box is empty: its low end 1 is not below its high end 0"),
        ("box:1,1", "the box is empty"),
        ("box:nan,1", "'nan' is no finite number"),
        ("box:0,inf", "'inf' is no finite number"),
        ("box:0,1e999", "an end of the box is inf"),
        ("box:0,٣", "is no finite number"),
        ("ball:-1", "the radius of the ball is -1; give a positive number"),
        ("ball:0", "the radius of the ball is 0"),
        ("ball:nan", "is no finite number"),
        ("ball:@cat.png", "is no finite number"),
        ("ball:1@", "names no file behind its @"),
        ("bx:\x1b[31m", r"\x1b"),
    ],
)
def test_what_means_nothing_is_refused_in_a_line(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_domain(text)
    assert words in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Box(1, 0), "is empty"),
        (lambda: Box(0, math.nan), "is nan"),
        (lambda: Box(torch.zeros(3), torch.tensor([1.0, -1.0, 2.0])), "1 elements have their low end above"),
        (lambda: Box(torch.zeros(3), torch.zeros(3)), "a single point"),
        (lambda: Box(torch.zeros(3), torch.full((3,), math.inf)), "not finite"),
        (lambda: Box(torch.zeros(3), torch.ones(2)), "have shapes 3 and 2"),
        (lambda: Box("0", "1"), "is a str"),
        (lambda: Box(torch.zeros(2, dtype=torch.complex64), 1), "no plain tensor of real numbers"),
        (lambda: Ball(-1.0), "is -1"),
        (lambda: Ball(math.inf), "is inf"),
        (lambda: Ball("1"), "is a str"),
        (lambda: Ball(1.0, torch.tensor([math.nan])), "is not finite"),
        (lambda: wanted_domain((0, 1)), "domain is a tuple"),
        (lambda: Box(0, 1).range((1, 1, 4, 4), MEAN, STD), r"does not fit its input of 1×4×4"),
        (lambda: Box(0, 1).range(SHAPE, MEAN, (0.0,)), "which is no normalisation"),
        (lambda: Box(torch.zeros(7), 1.0).range(SHAPE), "an end of the box is 7, the network takes 3×4×5"),
        (lambda: Ball(1.0, torch.zeros(3, 4)).range(SHAPE), "is 3×4, the network takes 3×4×5"),
    ],
)
def test_domains_that_mean_nothing_are_refused_in_a_line(make: Any, words: str) -> None:
    with pytest.raises(LipcheckError) as caught:
        make()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


# Ranges.


@given(
    st.floats(-3, 3),
    st.floats(1e-6, 4),
    st.integers(0, 2**31),
    st.sampled_from([((), ()), (MEAN, STD), ((0.5,), (2.0,))]),
)
def test_every_image_of_the_box_normalised_in_single_precision_is_in_its_range(
    low: float, width: float, seed: int, normalisation: tuple[Any, Any]
) -> None:
    mean, std = normalisation
    within = Box(low, low + width).range(SHAPE, mean, std)
    noise = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 2, SHAPE, generator=noise).double()
    for share in (
        torch.rand(SHAPE, generator=noise, dtype=torch.float64),
        corners,
        torch.zeros(SHAPE),
        torch.ones(SHAPE),
    ):
        exact = low + share.double() * ((low + width) - low)
        exact = exact.clamp(low, low + width)
        if not mean:
            assert holds(within, exact)
            continue
        middle, spread = (torch.tensor(values).reshape(-1, 1, 1) for values in (mean, std))
        assert holds(within, (exact - middle.double()) / spread.double())
        assert holds(within, (exact.float() - middle) / spread)


def test_a_box_is_no_wider_than_it_must_be() -> None:
    within = Box(0, 1).range(SHAPE, MEAN, STD)
    for channel in range(3):
        assert float(within.low[0, channel].min()) == pytest.approx(-MEAN[channel] / STD[channel], rel=1e-5)
        assert float(within.high[0, channel].max()) == pytest.approx((1 - MEAN[channel]) / STD[channel], rel=1e-5)
    half = math.sqrt(20 * sum((0.5 / s) ** 2 for s in STD))
    assert math.exp(within.radius) == pytest.approx(half, rel=1e-5)
    assert math.exp(within.rows) == pytest.approx(math.sqrt(5) * 0.5 / min(STD), rel=1e-5)


def test_ends_may_be_tensors() -> None:
    low = torch.zeros(3, 4, 5)
    low[0, 0, 0] = 0.25
    within = Box(low, 1.0).range(SHAPE, (0.0,), (2.0,))
    assert float(within.low[0, 0, 0, 0]) == pytest.approx(0.125, rel=1e-5)
    assert float(within.low.min()) == pytest.approx(0, abs=1e-6)
    per_channel = Box(torch.tensor([0.0, 0.1, 0.2])[:, None, None], 1.0, normalised=True).range(SHAPE, MEAN, STD)
    assert [float(row.min()) for row in per_channel.low[0]] == pytest.approx([0, 0.1, 0.2], rel=1e-6)


@given(st.floats(1e-6, 1e6), st.integers(0, 2**31), st.booleans())
def test_every_input_of_the_ball_is_in_its_range(radius: float, seed: int, centred: bool) -> None:
    noise = torch.Generator().manual_seed(seed)
    center = torch.randn(SHAPE[1:], generator=noise) * 3 if centred else None
    within = Ball(radius, center).range(SHAPE)
    middle = torch.zeros(SHAPE).double() if center is None else center.double()[None]
    for direction in (
        torch.randn(SHAPE, generator=noise, dtype=torch.float64),
        torch.eye(60)[7].reshape(SHAPE).double(),
    ):
        edge = middle + direction * (radius * (1 - 1e-8) / torch.linalg.vector_norm(direction))
        assert holds(within, edge)
    assert math.exp(within.radius) <= radius * (1 + 1e-8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "domain",
    [
        Box(0, 1),
        Box(-1e-3, 1e-3),
        Box(1, 1.01),
        Ball(2.0),
        Ball(0.01, torch.full(SHAPE, 1 / 3)),
        Ball(1e-9, torch.ones(SHAPE)),
    ],
)
def test_samples_stay_inside(domain: Domain, dtype: torch.dtype) -> None:
    within = domain.range(SHAPE)
    points = domain.sample(within, torch.Generator().manual_seed(3), 5, dtype)
    assert all(point.dtype == dtype and point.shape == SHAPE and holds(within, point) for point in points)
    again = domain.sample(within, torch.Generator().manual_seed(3), 5, dtype)
    assert all(torch.equal(*pair) for pair in zip(points, again, strict=True))
    if dtype != torch.bfloat16:
        assert len(points) == 5
        assert len({float(point.double().sum()) for point in points}) == 5 or isinstance(domain, Ball)


def test_samples_fill_a_box_and_reach_the_edge_of_a_ball() -> None:
    generator = torch.Generator().manual_seed(0)
    within = Box(0, 1).range(SHAPE)
    points = torch.cat(Box(0, 1).sample(within, generator, 50, torch.float64))
    assert points.min() < 0.01
    assert points.max() > 0.99
    ball = Ball(2.0)
    points = torch.cat(ball.sample(ball.range(SHAPE), generator, 50, torch.float64))
    norms = torch.linalg.vector_norm(points.flatten(1), dim=1)
    assert norms.max() > 1.9
    assert norms.min() < norms.max()


def test_a_domain_that_holds_no_number_of_the_precision_gives_no_sample() -> None:
    ball = Ball(1e-12, torch.full(SHAPE, 1 / 3, dtype=torch.float64))
    assert ball.sample(ball.range(SHAPE), torch.Generator(), 3, torch.bfloat16) == []


# Files.


@pytest.mark.parametrize("suffix", [".npy", ".pt", ".safetensors"])
@pytest.mark.parametrize("shape", [SHAPE, SHAPE[1:]])
def test_the_centre_of_a_ball_is_read(tmp_path: Path, suffix: str, shape: tuple[int, ...]) -> None:
    center = torch.randn(shape)
    path = saved(tmp_path / f"center{suffix}", center)
    region = open_region(wanted_domain(f"ball:0.5@{path}"), loaded())
    assert region.range.center is not None
    assert torch.equal(region.range.center.float().reshape(shape), center)
    assert region.described == f"ball:0.5 around {path} in the network's own input units"
    assert all(holds(region.range, point) for point in region.draw(torch.Generator(), 2))


def saved(path: Path, tensor: Tensor) -> Path:
    if path.suffix == ".npy":
        numpy.save(path, tensor.numpy())
    elif path.suffix == ".pt":
        torch.save(tensor, path)
    else:
        save_file({"x": tensor.contiguous()}, path)
    return path


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return open, (str(self.target), "w")


def hostile_files(folder: Path) -> dict[str, str]:
    """Files that must be refused, and words of the refusal."""
    witness = folder / "ran"
    torch.save(Payload(witness), folder / "code.pt")
    numpy.save(folder / "objects.npy", numpy.array([{}], dtype=object), allow_pickle=True)
    numpy.save(folder / "words.npy", numpy.array(["a"]))
    numpy.save(folder / "nan.npy", numpy.full(SHAPE, numpy.nan))
    numpy.save(folder / "small.npy", numpy.zeros((3, 4)))
    (folder / "huge.npy").write_bytes((folder / "small.npy").read_bytes().replace(b"(3, 4), ", b"(39,44444),"))
    (folder / "cut.npy").write_bytes((folder / "small.npy").read_bytes()[:20])
    torch.save(torch.zeros(1).expand(SHAPE), folder / "stride.pt")
    torch.save({"a": torch.zeros(2), "b": torch.zeros(2)}, folder / "two.pt")
    torch.save([1, 2], folder / "list.pt")
    torch.save(torch.zeros(SHAPE, dtype=torch.complex64), folder / "complex.pt")
    save_file({"a": torch.zeros(2), "b": torch.zeros(2)}, folder / "two.safetensors")
    (folder / "header.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with zipfile.ZipFile(folder / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 1_000_000)
    (folder / "text.png").write_text("no image")
    (folder / "folder.png").mkdir()
    return {
        "code.pt": "only tensors are read",
        "objects.npy": "no .npy file of numbers",
        "words.npy": "give an array of real numbers",
        "nan.npy": "NaN or infinite",
        "small.npy": "is 3×4, the network takes 3×4×5",
        "huge.npy": "no .npy file of numbers",
        "cut.npy": "no .npy file of numbers",
        "stride.pt": "claims 60 elements",
        "two.pt": "holds 2 tensors, one is expected",
        "list.pt": "holds no tensor",
        "complex.pt": "give a file of real numbers",
        "two.safetensors": "holds 2 tensors",
        "header.safetensors": "no sound safetensors file",
        "bomb.pt": "is compressed",
        "text.png": "no readable image",
        "folder.png": "a folder",
        "missing.npy": "no such file",
    }


def test_hostile_and_wrong_files_are_refused_in_a_line(tmp_path: Path) -> None:
    for name, words in hostile_files(tmp_path).items():
        with pytest.raises(LipcheckError) as caught:
            open_region(wanted_domain(f"ball:1@{tmp_path / name}"), loaded(pixels=IMAGENET))
        assert words in str(caught.value), name
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_an_image_is_resized_cut_and_normalised(tmp_path: Path) -> None:
    image_module = pytest.importorskip("PIL.Image")
    picture = torch.zeros(64, 128, 3, dtype=torch.uint8)
    picture[:, 48:80, 0] = 255  # a red stripe in the middle
    image_module.fromarray(picture.numpy()).save(tmp_path / "stripe.png")
    model = loaded((1, 3, 32, 32), replace(IMAGENET, zoom=1.0))
    center = open_region(wanted_domain(f"ball:1@{tmp_path / 'stripe.png'}"), model).range.center
    assert center is not None
    pixels = center[0] * torch.tensor(STD, dtype=torch.float64)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    assert pixels.shape == (3, 32, 32)
    assert float(pixels[0, 16, 16]) == pytest.approx(1, abs=1e-6)
    assert float(pixels[0, 16, 1]) == pytest.approx(0, abs=1e-6)
    assert float(pixels[1].abs().max()) == pytest.approx(0, abs=1e-6)
    squeezed = loaded((1, 3, 32, 32), replace(IMAGENET, zoom=None))
    center = open_region(wanted_domain(f"ball:1@{tmp_path / 'stripe.png'}"), squeezed).range.center
    assert center is not None
    assert int((center[0, 0, 16] > 0).sum()) == 8
    with pytest.raises(SourceError, match="does not say how images are normalised"):
        open_region(wanted_domain(f"ball:1@{tmp_path / 'stripe.png'}"), loaded((1, 3, 32, 32)))
    with pytest.raises(LipcheckError, match="takes 3x4, no image"):
        open_region(wanted_domain(f"ball:1@{tmp_path / 'stripe.png'}"), loaded((1, 3, 4), IMAGENET))


def test_an_image_as_timm_prepares_it(tmp_path: Path) -> None:
    import timm
    from PIL import Image

    noise = torch.Generator().manual_seed(0)
    smooth = nn.functional.interpolate(torch.rand(1, 3, 8, 8, generator=noise), (120, 160), mode="bicubic")
    picture = (smooth[0].clamp(0, 1) * 255).byte().permute(1, 2, 0)
    Image.fromarray(picture.numpy()).save(tmp_path / "x.png")
    model = timm.create_model("test_resnet", pretrained=False)
    config = timm.data.resolve_model_data_config(model)
    expected = timm.data.create_transform(**config, is_training=False)(Image.open(tmp_path / "x.png"))
    found = open_region(
        wanted_domain(f"ball:1@{tmp_path / 'x.png'}"), loaded((1, *config["input_size"]), timm_pixels(model))
    ).range.center
    assert found is not None
    assert float((found[0] - expected).abs().max()) < 0.05


# What configs say.


def test_the_normalisation_of_every_source() -> None:
    import timm
    import torchvision  # noqa: F401

    from lipcheck.sources.torchvision_models import torchvision_model

    found = timm_pixels(timm.create_model("resnet18", pretrained=False))
    assert found is not None
    assert (found.mean, found.std, found.axis) == (MEAN, STD, -3)
    assert found.zoom == pytest.approx(1 / 0.95)
    assert timm_pixels(nn.Identity()) is None
    of_images = torchvision_model("resnet18").pixels(nn.Identity())
    assert of_images is not None
    assert (of_images.mean, of_images.std, of_images.zoom) == (MEAN, STD, 256 / 224)
    of_videos = torchvision_model("r3d_18").pixels(nn.Identity())
    assert of_videos is not None
    assert of_videos.axis == -4
    assert torchvision_model("fasterrcnn_resnet50_fpn").pixels(nn.Identity()) is None


@pytest.mark.parametrize(
    ("config", "mean", "std"),
    [
        ({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}, (0.5,) * 3, (0.25,) * 3),
        ({"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "rescale_factor": 1 / 255}, (0.5,) * 3, (0.25,) * 3),
        ({"image_mean": [127.5], "image_std": [127.5], "do_rescale": False}, (0.5,), (0.5,)),
        ({"size": {"height": 8, "width": 8}, "do_normalize": False}, (0.0,), (1.0,)),
    ],
)
def test_the_normalisation_of_a_folder(config: dict[str, Any], mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    found = transformers_pixels(config)
    assert found is not None
    assert found.mean == pytest.approx(mean)
    assert found.std == pytest.approx(std)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"image_mean": "0.5", "image_std": [1]},
        {"image_mean": [math.nan], "image_std": [1]},
        {"image_mean": [0.5], "image_std": None},
        {"image_mean": [True], "image_std": [1]},
        {"image_mean": [0.5], "image_std": [1], "rescale_factor": 0},
        {"do_rescale": True},
    ],
)
def test_a_config_that_says_nothing_is_not_guessed_at(config: dict[str, Any]) -> None:
    assert transformers_pixels(config) is None


# The whole path.


def test_the_domain_reaches_the_report_and_the_sampled_bound() -> None:
    module = Function(lambda self, x: torch.exp(x))
    everywhere = lipcheck.check(module, example=torch.zeros(1, 4), samples=8)
    assert everywhere.network.log10_upper == math.inf
    assert everywhere.network.domain == ""
    report = lipcheck.check(module, example=torch.zeros(1, 4), domain="box:-1,0.5", samples=8)
    assert report.network.domain == "box:-1,0.5 in the network's own input units"
    assert math.exp(0.5) <= 10**report.network.log10_upper <= math.exp(0.5) * 1.001
    assert math.exp(-1) <= report.network.lower <= math.exp(0.5)
    assert report.network.lower < everywhere.network.lower
    assert "in the network's own input units" in str(report)
    assert "on the domain" in str(report)
    assert "for all inputs" in str(everywhere)


def test_a_ball_bounds_what_is_in_it() -> None:
    center = torch.full((1, 4), 2.0)
    report = lipcheck.check(
        Function(lambda self, x: x * x.sum(1, keepdim=True)),
        example=center,
        domain=lipcheck.Ball(0.5, center),
        samples=4,
    )
    assert math.isfinite(report.network.log10_upper)
    assert 8 < report.network.lower <= 10**report.network.log10_upper


class Normalising(nn.Module):
    """A network that squares what it receives, and says how that is made of pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.pretrained_cfg = {"mean": MEAN, "std": STD, "input_size": (3, 4, 4)}

    def forward(self, x: Tensor) -> Tensor:
        return x * x


def test_pixels_are_normalised_as_the_config_says() -> None:
    report = lipcheck.check(Normalising(), domain="box:0,1", samples=3)
    truth = 2 * max(max(m, 1 - m) / s for m, s in zip(MEAN, STD, strict=True))
    assert truth <= 10**report.network.log10_upper <= truth * 1.001
    assert report.network.lower <= truth
    assert "mean 0.485, 0.456, 0.406, std 0.229, 0.224, 0.225" in report.network.domain
    own = lipcheck.check(Normalising(), domain=lipcheck.Box(0, 1, normalised=True), samples=0)
    assert 2 <= 10**own.network.log10_upper <= 2.001


def test_what_is_infinite_everywhere_names_the_next_step() -> None:
    report = lipcheck.check(Normalising(), samples=0)
    assert any("--domain box:0,1" in note for note in report.run.notes)
    report = lipcheck.check(Function(lambda self, x: x * x), example=torch.zeros(1, 3), samples=0)
    assert any("--domain box:LOW,HIGH or ball:RADIUS" in note for note in report.run.notes)
    report = lipcheck.check(Function(lambda self, x: x.bool().float()), example=torch.zeros(1, 3), samples=0)
    assert not any("--domain" in note for note in report.run.notes)


def test_a_domain_is_refused_before_a_model_is_loaded() -> None:
    with pytest.raises(UsageError, match="did you mean box"):
        lipcheck.check("no such model", domain="bx:0,1")
    with pytest.raises(SourceError, match="no such file"):
        lipcheck.check("no such model", domain="ball:1@/no/such.npy")
