"""Small networks of every family, weights random: no pair of inputs of the domain that ascent finds beats the bound."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import reference
import torch
from networks import Function, in_double, jacobian
from torch import Tensor, nn

import lipcheck
from lipcheck.domains import Box

STARTS, STEPS = 100, 12
LOW, HIGH = 0.0, 1.0
# What float64 may add to a quotient of differences of 1e-3.
ROUNDING = 1e-7


def largest_quotient(module: nn.Module, shape: tuple[int, ...], reach: tuple[float, ...] = (1e-3, 0.1, 1.0)) -> float:
    """The largest ||f(a) - f(b)|| / ||a - b|| that Adam finds from many pairs near and far in the box."""
    noise = torch.Generator().manual_seed(5)
    first = torch.rand(STARTS, *shape, generator=noise, dtype=torch.float64) * (HIGH - LOW) + LOW
    far = torch.tensor(reach, dtype=torch.float64)[torch.arange(STARTS) % len(reach)]
    apart = torch.randn(STARTS, *shape, generator=noise, dtype=torch.float64)
    second = (first + apart * far.reshape(-1, *(1,) * len(shape))).clamp(LOW, HIGH)
    first.requires_grad_()
    second.requires_grad_()
    ascent = torch.optim.Adam([first, second], lr=0.02, maximize=True)
    best = 0.0
    for step in range(STEPS + 1):
        gap = (module(first) - module(second)).flatten(1).norm(dim=1)
        quotient = gap / (first - second).flatten(1).norm(dim=1).clamp_min(1e-300)
        best = max(best, float(quotient.detach().nan_to_num(0.0).max()))
        if step == STEPS:
            return best
        ascent.zero_grad()
        quotient.clamp_min(1e-300).log().sum().backward()
        for point in (first, second):
            assert point.grad is not None
            point.grad.nan_to_num_(0.0, 0.0, 0.0)
        ascent.step()
        with torch.no_grad():
            first.clamp_(LOW, HIGH)
            second.clamp_(LOW, HIGH)
    return best


def shaken(module: nn.Module) -> nn.Module:
    """The same network with no weight that initialisation made zero or one."""
    noise = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if weight.dim() < 2 or "table" in name or not bool(weight.any()):
                weight.add_(0.3 * torch.randn(weight.shape, generator=noise))
        for name, buffer in module.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.05, 1.5, generator=noise)
    return module.eval()


IMAGE = (3, 16, 16)


def resnet(**options: Any) -> nn.Module:
    from timm.models import resnet as models

    given: dict[str, Any] = {"channels": (4, 6, 6, 8), "stem_width": 4, "num_classes": 3} | options
    return models.ResNet(models.BasicBlock, [1, 1, 1, 1], **given)


def efficientnet() -> nn.Module:
    from timm.models import _efficientnet_builder as builder
    from timm.models.efficientnet import EfficientNet

    blocks = builder.decode_arch_def([["ds_r1_k3_s1_e1_c4_se0.25"], ["ir_r2_k3_s2_e3_c6_se0.25"]])
    return EfficientNet(blocks, num_classes=3, num_features=8, stem_size=4, act_layer=nn.SiLU)


def convnext(**options: Any) -> nn.Module:
    from timm.models.convnext import ConvNeXt

    return ConvNeXt(num_classes=3, depths=(1, 1, 1, 1), dims=(4, 4, 6, 6), patch_size=2, kernel_sizes=3, **options)


def vit(**options: Any) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    given = {"img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 2, "num_heads": 2, "num_classes": 3} | options
    return VisionTransformer(**given)


def eva() -> nn.Module:
    from timm.models.eva import Eva

    return Eva(
        img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=3, swiglu_mlp=True,
        use_rot_pos_emb=True, use_abs_pos_emb=False,
    )  # fmt: skip


def swin(version: int) -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    kind = {1: SwinTransformer, 2: SwinTransformerV2}[version]
    return kind(img_size=16, patch_size=2, embed_dim=8, depths=(2, 1), num_heads=(2, 2), window_size=4, num_classes=3)


def maxvit() -> nn.Module:
    from timm.models.maxxvit import MaxxVit, MaxxVitCfg, MaxxVitConvCfg, MaxxVitTransformerCfg

    config = MaxxVitCfg(
        embed_dim=(8, 8), depths=(1, 1), block_type=("M", "M"), stem_width=8,
        conv_cfg=MaxxVitConvCfg(attn_ratio=0.5), transformer_cfg=MaxxVitTransformerCfg(dim_head=4, window_size=(2, 2)),
    )  # fmt: skip
    return MaxxVit(config, img_size=16, num_classes=3)


def mobilevit() -> nn.Module:
    from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg

    given: dict[str, Any] = {"transformer_dim": 8, "transformer_depth": 1, "patch_size": 2, "num_heads": 2}
    first = ByoBlockCfg(type="bottle", d=1, c=8, s=2, gs=1, br=2.0)
    second = ByoBlockCfg(type="bottle", d=1, c=8, s=1, gs=1, br=2.0)
    third = ByoBlockCfg(type="mobilevit", d=1, c=8, s=1, block_kwargs=given)
    config = ByoModelCfg(
        blocks=(first, (second, third)), stem_chs=4, stem_type="3x3", stem_pool="", act_layer="silu", num_features=8
    )
    return ByobNet(config, num_classes=3)


def nfnet() -> nn.Module:
    from timm.models.nfnet import NfCfg, NormFreeNet

    config = NfCfg(
        depths=(1, 1), channels=(8, 8), stem_type="3x3", stem_chs=4, group_size=4, bottle_ratio=0.5, attn_layer="se",
        attn_kwargs={"rd_ratio": 0.5}, num_features=8, act_layer="gelu",
    )  # fmt: skip
    return NormFreeNet(config, num_classes=3)


def mixer() -> nn.Module:
    from timm.models.mlp_mixer import MlpMixer

    return MlpMixer(num_classes=3, img_size=16, patch_size=8, num_blocks=1, embed_dim=8)


def metaformer() -> nn.Module:
    from timm.models.metaformer import MetaFormer

    return MetaFormer(num_classes=3, depths=(1, 1), dims=(4, 6))


def tiny(name: str) -> nn.Module:
    """A small network of transformers, its input behind the embedding table."""
    pytest.importorskip("transformers")
    from lipcheck.sources import tiny_transformers

    return tiny_transformers.tiny(name).build()


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.LSTM | nn.GRU]) -> None:
        super().__init__()
        self.cells, self.head = kind(3, 4, batch_first=True, bidirectional=True), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.cells(x)[0][:, -1])
        return found


def statistics(x: Tensor) -> Tensor:
    """The mean and the deviation over time of what was read, as audio networks pool."""
    weights = x.softmax(-1)
    mean = (weights * x).sum(-1)
    variance = (weights * x * x).sum(-1) - mean * mean
    return torch.cat([mean, variance.clamp_min(1e-2).sqrt()], 1)


FAMILIES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet": (resnet, IMAGE),
    "squeeze-excite": (lambda: resnet(block_args={"attn_layer": "se"}), IMAGE),
    "efficient channel attention": (lambda: resnet(block_args={"attn_layer": "eca"}), IMAGE),
    "efficientnet": (efficientnet, IMAGE),
    "convnext": (convnext, (3, 32, 32)),
    "convnext v2": (lambda: convnext(use_grn=True, ls_init_value=None), (3, 32, 32)),
    "vit": (vit, IMAGE),
    "vit, normalised queries, layer scale": (lambda: vit(qk_norm=True, init_values=0.5), IMAGE),
    "eva": (eva, IMAGE),
    "swin": (lambda: swin(1), IMAGE),
    "swin v2": (lambda: swin(2), IMAGE),
    "maxvit": (maxvit, IMAGE),
    "mobilevit": (mobilevit, IMAGE),
    "nfnet": (nfnet, IMAGE),
    "mixer": (mixer, IMAGE),
    "metaformer": (metaformer, IMAGE),
    "lstm": (lambda: Recurrent(nn.LSTM), (5, 3)),
    "gru": (lambda: Recurrent(nn.GRU), (5, 3)),
    "statistics pooling": (lambda: nn.Sequential(nn.Conv1d(2, 3, 3), Function(lambda self, x: statistics(x))), (2, 8)),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_no_pair_that_ascent_finds_is_further_apart_than_the_bound(name: str) -> None:
    if name not in ("lstm", "gru", "statistics pooling"):
        pytest.importorskip("timm")
    build, shape = FAMILIES[name]
    torch.manual_seed(3)
    module = shaken(build())
    report = lipcheck.check(module, example=torch.rand(1, *shape), domain=Box(LOW, HIGH), samples=1)
    assert math.isfinite(report.network.log10_upper), report.unsupported
    twin = in_double(module)
    found = largest_quotient(twin, shape)
    assert math.log10(found * (1 - ROUNDING)) <= report.network.log10_upper
    x = torch.rand(1, *shape, dtype=torch.float64)
    assert math.log10(reference.norm(jacobian(twin, x))) <= report.network.log10_upper + 1e-9
    print(
        f"{name}: 10^{report.network.log10_upper:.2f}, plain 10^{report.network.log10_product:.2f}, found {found:.3g}"
    )
