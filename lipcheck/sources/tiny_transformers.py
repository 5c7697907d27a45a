"""transformers: one small network of each type, built from its configuration class alone, so that nothing is fetched.

A type's operations do not depend on its size: two layers of 32 numbers show them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import nn

from lipcheck.sources.blueprint import Blueprint, Size
from lipcheck.sources.surroundings import quiet
from lipcheck.sources.transformers_models import _import_transformers

_WIDTH, _TOKENS = 32, 16


@dataclass(frozen=True, slots=True)
class Tiny:
    """A model class of transformers, what its configuration is told, and the input that it is given."""

    network: str
    settings: Mapping[str, Any]
    keyword: str
    size: Size
    attention: str = ""  # the library's own choice unless given


def _tokens(network: str, attention: str = "", **settings: Any) -> Tiny:
    """A network of tokens, from behind its embedding table."""
    usual: dict[str, Any] = {
        "vocab_size": 99, "hidden_size": _WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64, "max_position_embeddings": 64, "pad_token_id": 0,
    }  # fmt: skip
    return Tiny(network, usual | settings, "inputs_embeds", (_TOKENS, _WIDTH), attention)


def _image(network: str, size: Size = (3, 64, 64), attention: str = "", **settings: Any) -> Tiny:
    return Tiny(network, settings, "pixel_values", size, attention)


def _vit(network: str, attention: str = "", **settings: Any) -> Tiny:
    """A transformer of patches."""
    usual: dict[str, Any] = {
        "hidden_size": _WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
        "image_size": 64, "patch_size": 16,
    }  # fmt: skip
    return _image(network, attention=attention, **usual | settings)


def _speech(network: str, **settings: Any) -> Tiny:
    """A network of sound samples."""
    usual: dict[str, Any] = {
        "hidden_size": _WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
        "conv_dim": (16, 16), "conv_stride": (5, 4), "conv_kernel": (10, 8), "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4, "vocab_size": 32, "num_feat_extract_layers": 2,
    }  # fmt: skip
    return Tiny(network, usual | settings, "input_values", (1600,))


_SHORT: dict[str, Any] = {"hidden_sizes": [16, 32], "depths": [1, 2]}
_LONGER: dict[str, Any] = {"hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1]}
_SWIN: dict[str, Any] = {
    "image_size": 64,
    "patch_size": 4,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
}
_GPT: dict[str, Any] = {"n_embd": _WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 64}
_KEYS: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 8}
_DETR: dict[str, Any] = {
    "use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None, "d_model": _WIDTH,
    "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "num_queries": 8,
    "backbone_config": {"model_type": "resnet", "embedding_size": 8, "out_features": ["stage2"], **_SHORT},
}  # fmt: skip

TINY: Mapping[str, Tiny] = MappingProxyType(
    {
        "albert": _tokens("AlbertModel", embedding_size=_WIDTH),
        "audio-spectrogram-transformer": Tiny(
            "ASTForAudioClassification",
            {"hidden_size": _WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
             "max_length": 64, "num_mel_bins": 32},
            "input_values", (64, 32),
        ),
        "beit": _vit("BeitForImageClassification", use_relative_position_bias=True),
        "bert": _tokens("BertModel"),
        "bert-eager": _tokens("BertModel", "eager"),
        "bit": _image("BitForImageClassification", embedding_size=16, num_groups=4, **_LONGER),
        "bloom": _tokens("BloomModel", n_layer=2, n_head=4),
        "clip_vision_model": _vit("CLIPVisionModel"),
        "convnext": _image("ConvNextForImageClassification", **_LONGER),
        "convnextv2": _image("ConvNextV2ForImageClassification", **_LONGER),
        "data2vec-vision": _vit("Data2VecVisionForImageClassification"),
        "deberta-v2": _tokens("DebertaV2Model", relative_attention=True, pos_att_type=["p2c", "c2p"]),
        "deit": _vit("DeiTForImageClassification"),
        "detr": _image("DetrForObjectDetection", **_DETR),
        "dinov2": _vit("Dinov2ForImageClassification"),
        "dinov3_vit": _vit("DINOv3ViTModel"),
        "distilbert": _tokens("DistilBertModel", dim=_WIDTH, n_layers=2, n_heads=4, hidden_dim=64),
        "efficientnet": _image(
            "EfficientNetForImageClassification", image_size=64, width_coefficient=0.25, depth_coefficient=0.25,
            hidden_dim=320,
        ),
        "electra": _tokens("ElectraModel", embedding_size=_WIDTH),
        "falcon": _tokens("FalconModel"),
        "fnet": _tokens("FNetModel"),
        "focalnet": _image("FocalNetForImageClassification", image_size=64, embed_dim=16, depths=[1, 1, 1, 1]),
        "gemma": _tokens("GemmaModel", **_KEYS),
        "gemma2": _tokens("Gemma2Model", **_KEYS),
        "gpt2": _tokens("GPT2Model", **_GPT),
        "gpt_neo": _tokens("GPTNeoModel", num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]]),
        "gpt_neox": _tokens("GPTNeoXModel"),
        "hiera": _image(
            "HieraForImageClassification", image_size=[64, 64], embed_dim=16, depths=[1, 1, 1, 1],
            num_heads=[1, 1, 2, 4],
        ),
        "hubert": _speech("HubertModel"),
        "levit": _image(
            "LevitForImageClassification", image_size=64, hidden_sizes=[16, 32, 64], num_attention_heads=[2, 2, 4],
            depths=[1, 1, 1], key_dim=[8, 8, 8],
        ),
        "llama": _tokens("LlamaModel", **_KEYS),
        "llama-eager": _tokens("LlamaModel", "eager", **_KEYS),
        "mamba": _tokens("MambaModel", state_size=8),
        "mamba2": _tokens("Mamba2Model", num_heads=8, head_dim=8, n_groups=1, state_size=8, chunk_size=8),
        "mistral": _tokens("MistralModel", **_KEYS),
        "mixtral": _tokens("MixtralModel", num_local_experts=4, num_experts_per_tok=2, **_KEYS),
        "mobilenet_v1": _image("MobileNetV1ForImageClassification", image_size=64, depth_multiplier=0.25),
        "mobilenet_v2": _image("MobileNetV2ForImageClassification", image_size=64, depth_multiplier=0.35),
        "mobilevit": _image(
            "MobileViTForImageClassification", image_size=64, hidden_sizes=[16, 24, 32],
            neck_hidden_sizes=[8, 8, 16, 16, 24, 32, 64],
        ),
        "mobilevitv2": _image("MobileViTV2ForImageClassification", image_size=64, width_multiplier=0.5),
        "modernbert": _tokens("ModernBertModel", reference_compile=False, cls_token_id=1, sep_token_id=2),
        "mpnet": _tokens("MPNetModel"),
        "opt": _tokens("OPTModel", ffn_dim=64, word_embed_proj_dim=_WIDTH),
        "phi": _tokens("PhiModel"),
        "poolformer": _image("PoolFormerForImageClassification", **_LONGER),
        "pvt": _image(
            "PvtForImageClassification", image_size=64, num_attention_heads=[1, 1, 2, 2], **_LONGER,
        ),
        "pvt_v2": _image("PvtV2ForImageClassification", image_size=64, num_attention_heads=[1, 1, 2, 2], **_LONGER),
        "qwen2": _tokens("Qwen2Model", num_key_value_heads=2),
        "qwen3": _tokens("Qwen3Model", **_KEYS),
        "regnet": _image("RegNetForImageClassification", embedding_size=16, groups_width=8, **_LONGER),
        "resnet": _image("ResNetForImageClassification", embedding_size=16, **_SHORT),
        "roberta": _tokens("RobertaModel"),
        "segformer": _image(
            "SegformerForImageClassification", num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=32, **_LONGER
        ),
        "siglip_vision_model": _vit("SiglipVisionModel"),
        "swin": _image("SwinForImageClassification", **_SWIN),
        "swinv2": _image("Swinv2ForImageClassification", **_SWIN),
        "t5-encoder": Tiny(
            "T5EncoderModel",
            {"vocab_size": 99, "d_model": _WIDTH, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
            "inputs_embeds", (_TOKENS, _WIDTH),
        ),
        "textnet": _image("TextNetForImageClassification"),
        "unispeech": _speech("UniSpeechModel", num_ctc_classes=32),
        "vit": _vit("ViTForImageClassification"),
        "vit-eager": _vit("ViTForImageClassification", "eager"),
        "vit_msn": _vit("ViTMSNForImageClassification"),
        "wav2vec2": _speech("Wav2Vec2Model"),
        "wavlm": _speech("WavLMModel"),
        "whisper-encoder": Tiny(
            "WhisperForAudioClassification",
            {"d_model": _WIDTH, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 64,
             "decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 64, "vocab_size": 99,
             "max_source_positions": 50, "num_mel_bins": 16, "pad_token_id": 0},
            "input_features", (16, 100),
        ),
        "xlm-roberta": _tokens("XLMRobertaModel"),
        "yolos": _vit("YolosForObjectDetection", image_size=[64, 64], num_detection_tokens=4),
    }
)  # fmt: skip


def tiny(name: str) -> Blueprint:
    """The small network of a type of transformers."""
    chosen = TINY[name]
    transformers = _import_transformers()

    def build() -> nn.Module:
        with quiet():
            network = getattr(transformers, chosen.network)
            settings = network.config_class(**chosen.settings)
            if chosen.attention:
                settings._attn_implementation = chosen.attention
            if hasattr(settings, "use_cache"):
                settings.use_cache = False  # what a decoder keeps for its next token is no output
            model: nn.Module = network(settings)
        return model

    def pretrained() -> tuple[nn.Module, str]:
        raise NotImplementedError("these networks have no weights")

    return Blueprint("transformers", build, pretrained, own_size=lambda _: chosen.size, keyword=chosen.keyword)
