"""Tiny random models of many transformers architectures, and inputs for them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

VOCABULARY, WIDTH, LENGTH = 128, 32, 12
# names that most configs know; what one does not know does no harm
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "embedding_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BART_SIZES = {
    "d_model": WIDTH,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "decoder_start_token_id": 1,
}
T5_SIZES = {"d_model": WIDTH, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
GPT2_SIZES = {"n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 64, "attention_types": [[["global"], 2]]}
IMAGE_SIZES = {"image_size": 16, "patch_size": 4, "num_channels": 3}
SWIN_SIZES = {"depths": [1, 1], "embed_dim": 16, "num_heads": [4, 4], "window_size": 2}
SEGFORMER_SIZES = {
    "num_encoder_blocks": 2,
    "depths": [1, 1],
    "hidden_sizes": [16, 32],
    "sr_ratios": [2, 1],
    "patch_sizes": [7, 3],
    "strides": [4, 2],
    "num_attention_heads": [2, 2],
    "mlp_ratios": [2, 2],
}
CLIP_PARTS = {
    "text_config": {**SIZES, "projection_dim": 16},
    "vision_config": {**SIZES, **IMAGE_SIZES, "projection_dim": 16},
}
SPEECH_SIZES = {
    "conv_dim": [16, 16],
    "conv_stride": [4, 2],
    "conv_kernel": [8, 4],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "mask_time_prob": 0.0,
}
# Funnel and XLNet have names of their own and refuse the common ones
FUNNEL_SIZES = {"d_model": WIDTH, "n_head": 4, "d_inner": 48}
REFUSED_BY_FUNNEL = dict.fromkeys(
    ("num_hidden_layers", "max_position_embeddings", "hidden_size", "num_attention_heads")
)


def text(length: int = LENGTH) -> dict[str, torch.Tensor]:
    """Two sentences, the second of which is padded to half the length."""
    ids = torch.randint(3, VOCABULARY, (2, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    ids[1, length // 2 :] = mask[1, length // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def text_to_text() -> dict[str, torch.Tensor]:
    """Two sentences and their translations, which have another length and padding of their own."""
    target = text(LENGTH - 5)
    return {
        **text(),
        "decoder_input_ids": target["input_ids"],
        "decoder_attention_mask": target["attention_mask"],
    }


def image() -> dict[str, torch.Tensor]:
    """Two images."""
    return {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))}


def image_and_text() -> dict[str, torch.Tensor]:
    """Two images and their captions."""
    return {**text(), **image()}


def sound() -> dict[str, torch.Tensor]:
    """Two waves, the second of which is padded to half the length."""
    mask = torch.ones(2, 400, dtype=torch.long)
    mask[1, 200:] = 0
    return {
        "input_values": torch.randn(2, 400, generator=torch.Generator().manual_seed(0)) * mask,
        "attention_mask": mask,
    }


def spectrogram() -> dict[str, torch.Tensor]:
    """Two spectrograms and the text that is spoken."""
    features = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(0))
    return {"input_features": features, "decoder_input_ids": text()["input_ids"]}


@dataclass(frozen=True)
class Family:
    """Model types that are built and fed alike.

    Attributes:
        model_types: model type -> settings of its own; None for one of SIZES that its config refuses.
        sizes: settings of all of them, beside SIZES. inputs: makes the model's inputs.
    """

    name: str
    model_types: dict[str, dict[str, Any]]
    sizes: dict[str, Any]
    inputs: Callable[[], dict[str, torch.Tensor]]


def _types(names: str, sizes: dict[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    return {name: sizes or {} for name in names.split()}


ENCODERS = _types(
    "bert roberta xlm-roberta xlm-roberta-xl camembert data2vec-text ernie electra mpnet roformer rembert deberta "
    "deberta-v2 convbert nystromformer megatron-bert splinter ibert esm layoutlm markuplm nomic_bert "
    "roberta-prelayernorm bert-generation canine visual_bert fnet luke mra yoso gte eurobert jina_embeddings_v3 "
    "squeezebert"
) | {
    "albert": {"num_hidden_groups": 1},
    "distilbert": {"dim": WIDTH, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    "modernbert": {"local_attention": 8, "global_attn_every_n_layers": 2},
    "mobilebert": {"true_hidden_size": 16, "intra_bottleneck_size": 16, "embedding_size": 16},
    "longformer": {"attention_window": 4},
    "big_bird": {"attention_type": "original_full"},
    "funnel": {
        **FUNNEL_SIZES,
        **REFUSED_BY_FUNNEL,
        "architectures": ["FunnelModel"],
        "block_sizes": [1, 1],
        "d_head": 8,
        "num_decoder_layers": 1,
    },
    "xlnet": {**FUNNEL_SIZES, **REFUSED_BY_FUNNEL, "n_layer": 2},
    "lilt": {"channel_shrink_ratio": 2, "max_2d_position_embeddings": 64, "hidden_size": 24},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "xlm": {"emb_dim": WIDTH, "n_layers": 2, "n_heads": 4},
}
DECODERS = (
    _types(
        "gpt_neox opt bloom phi phi3 llama mistral qwen2 qwen3 gemma gemma2 gemma3_text stablelm persimmon olmo olmo2 "
        "granite cohere starcoder2 smollm3 glm biogpt xglm mixtral helium nemotron"
    )
    | _types("gpt2 gpt_neo gpt_bigcode openai-gpt ctrl imagegpt", GPT2_SIZES)
    | _types("gptj codegen", {**GPT2_SIZES, "rotary_dim": 4})
    | {"falcon": {"head_dim": None}, "gpt_oss": {"num_experts_per_tok": 1}}
)
DECODER_SIZES = {
    "layer_norm_eps": 1e-5,
    "ffn_dim": 48,
    "word_embed_proj_dim": WIDTH,
    "num_experts": 2,
    "num_local_experts": 2,
}
SEQ2SEQ = (
    _types("t5 mt5 umt5 longt5", T5_SIZES)
    | _types("bart mbart pegasus blenderbot marian m2m_100 plbart mvp", BART_SIZES)
    | {
        "led": {**BART_SIZES, "attention_window": 4},
        "prophetnet": {
            "num_hidden_layers": None,
            "num_encoder_layers": 2,
            "num_decoder_layers": 2,
            "num_encoder_attention_heads": 4,
            "num_decoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
        },
    }
)
VISION = (
    _types("vit deit beit dinov2 vit_msn ijepa data2vec-vision vit_mae siglip_vision_model clip_vision_model")
    | _types("swin swinv2", {**SWIN_SIZES, "num_attention_heads": None, "head_dim": None})
    | _types("convnext convnextv2", {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2})
    | {
        "yolos": {"image_size": [16, 16]},
        "segformer": SEGFORMER_SIZES,
        "poolformer": {**SEGFORMER_SIZES, "num_attention_heads": None, "padding": [2, 1]},
    }
)
CLIPS = _types("clip siglip altclip chinese_clip owlvit", CLIP_PARTS)
SPEECH = _types("wav2vec2 hubert wavlm unispeech unispeech-sat sew data2vec-audio")
WHISPER = {"whisper": {**BART_SIZES, "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 32}}
FAMILIES = (
    Family("encoder", ENCODERS, {}, text),
    Family("decoder", DECODERS, DECODER_SIZES, text),
    Family("encoder-decoder", SEQ2SEQ, {}, text_to_text),
    Family("vision", VISION, IMAGE_SIZES, image),
    Family("vision and text", CLIPS, {}, image_and_text),
    Family("speech", SPEECH, SPEECH_SIZES, sound),
    Family("speech to text", WHISPER, {}, spectrogram),
)


def build(family: Family, model_type: str) -> PreTrainedModel:
    """A tiny random model, in evaluation mode and without dropout."""
    torch.manual_seed(0)
    sizes = {**SIZES, **family.sizes, **family.model_types[model_type]}
    config = AutoConfig.for_model(model_type, **{key: value for key, value in sizes.items() if value is not None})
    model = AutoModel.from_config(config)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.eval()
