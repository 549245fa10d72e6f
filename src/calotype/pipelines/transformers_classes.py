"""The classes of transformers that a checkpoint's files may name: encoders, tokenizers and processors."""

from __future__ import annotations

import importlib

from calotype.core.errors import UnknownClassError

ALLOWED = frozenset(
    """
    BertModel BertTokenizer BlipForConditionalGeneration BlipImageProcessor BlipProcessor ByT5Tokenizer
    CLIPFeatureExtractor CLIPImageProcessor CLIPModel CLIPProcessor CLIPTextModel CLIPTextModelWithProjection
    CLIPTokenizer CLIPVisionModel CLIPVisionModelWithProjection ClapFeatureExtractor ClapModel
    ClapTextModelWithProjection DPTFeatureExtractor DPTForDepthEstimation DPTImageProcessor GPT2LMHeadModel
    GPT2Model GPT2Tokenizer Gemma2Model Gemma3ForConditionalGeneration GemmaModel GemmaTokenizer
    LlamaForCausalLM LlamaModel LlamaTokenizer LlavaForConditionalGeneration MT5EncoderModel
    Mistral3ForConditionalGeneration PreTrainedTokenizer Qwen2Tokenizer Qwen2VLForConditionalGeneration Qwen2VLProcessor
    Qwen2_5_VLForConditionalGeneration Qwen2_5_VLProcessor Qwen3ForCausalLM Qwen3Model RobertaModel
    RobertaTokenizer SiglipImageProcessor SiglipModel SiglipVisionModel SpeechT5HifiGan T5EncoderModel
    T5Tokenizer UMT5EncoderModel ViTImageProcessor VitsModel VitsTokenizer XLMRobertaModel XLMRobertaTokenizer
    """.split()
)
"""The names that are imported, also with ``Fast`` or ``Pil`` at their ends, as the variants of one class are called.

Everything else of transformers, its Auto classes included, is refused.
"""

_RENAMED = {
    "CLIPFeatureExtractor": "CLIPImageProcessor",
    "DPTFeatureExtractor": "DPTImageProcessor",
}


def transformers_class(name: str) -> type:
    """The class of transformers called ``name``, if it is one that checkpoints may name."""
    if name.removesuffix("Fast").removesuffix("Pil") not in ALLOWED:
        raise UnknownClassError(
            f"transformers.{name} is not among the models, tokenizers and processors that a checkpoint may name, so it "
            f"is refused; if you trust it, load it yourself and pass it as the component."
        )
    transformers = importlib.import_module("transformers")
    found = getattr(transformers, _RENAMED.get(name, name), None)
    if not isinstance(found, type):
        raise UnknownClassError(
            f"The installed transformers {transformers.__version__} has no class {name!r}; another version may."
        )
    return found
