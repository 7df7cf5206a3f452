"""Rename layers and split experts in files of transformers 5, which keep the layout of its earlier versions.

`save_pretrained` converts the parameters of some models to the layout of earlier versions: experts that are one 3-D
parameter in the module are one tensor each in the file, and some modules have their old names. Both follow from
`config.json`. The rules were found by comparing modules of transformers 5.24 with their files.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from esdmon.weights.state.entries import Entry, State, computed_entry

_FIRST_VERSION = 5
_Names = tuple[tuple[str, str], ...]
_ATTENTION: _Names = (
    (r"\battention\.(attention|self)\.(query|key|value)\b", r"attention.\2"),
    (r"\battention\.query\b", "attention.q_proj"),
    (r"\battention\.key\b", "attention.k_proj"),
    (r"\battention\.value\b", "attention.v_proj"),
    (r"\battention\.output\.dense\b", "attention.o_proj"),
)
_BLOCK: _Names = (
    *_ATTENTION,
    (r"\bintermediate\.dense\b", "mlp.fc1"),
    (r"((layers|blocks)\.\d+)\.output\.dense\b", r"\1.mlp.fc2"),
)
_VISION: _Names = ((r"\bencoder\.layer\.", "layers."), *_BLOCK)
_OF_VISION = ("audio-spectrogram-transformer", "beit", "deit", "ijepa", "vit", "vit_mae", "vit_msn", "vivit")
_IMAGE_AND_TEXT: _Names = (
    (r"^language_model\.lm_head\b", "lm_head"),
    (r"^language_model\.(model\.)?", "model.language_model."),
    (r"^(vision_tower|multi_modal_projector|vision_embed_tokens)\.", r"model.\1."),
    (r"^(model\.vision_tower)\.vision_model\.", r"\1."),
)
_OF_IMAGE_AND_TEXT = (
    "aya_vision",
    "fuyu",
    "gemma3",
    "got_ocr2",
    "internvl",
    "llava",
    "llava_next",
    "llava_next_video",
    "llava_onevision",
    "mistral3",
    "paligemma",
    "shieldgemma2",
    "vipllava",
)
_QWEN_VL: _Names = (
    (r"^model\.(?!visual\.|language_model\.)", "model.language_model."),
    (r"^visual\.", "model.visual."),
)
_MOE: _Names = ((r"\bblock_sparse_moe\.", "mlp."),)
_NAMES: dict[str, _Names] = {
    **dict.fromkeys(_OF_VISION, _VISION),
    **dict.fromkeys(_OF_IMAGE_AND_TEXT, _IMAGE_AND_TEXT),
    **dict.fromkeys(("dinov2", "dinov2_with_registers"), _ATTENTION),
    **dict.fromkeys(("minimax", "minimax_m2", "mixtral", "phimoe"), _MOE),
    **dict.fromkeys(("qwen2_5_vl", "qwen2_vl"), _QWEN_VL),
    "segformer": (
        (r"\bencoder\.patch_embeddings\.(\d+)\.", r"stages.\1.patch_embeddings."),
        (r"\bencoder\.block\.(\d+)\.", r"stages.\1.blocks."),
        (r"\battention\.self\.sr\b", "attention.sequence_reduction.sequence_reduction"),
        *_ATTENTION,
        (r"\bmlp\.dense([12])\b", r"mlp.fc\1"),
        (r"\bdecode_head\.linear_c\.", "decode_head.linear_projections."),
    ),
    "swin": _BLOCK,
}
"""`model_type` -> patterns of names in its files, and the replacements that give the names in the module."""
_EXPERT = re.compile(r"(?P<block>.*\bexperts)\.(?P<number>\d{1,6})\.(?P<projection>\w+)\.weight")
_PARTS = {
    "gate_proj": "gate_up_proj/gate",
    "w1": "gate_up_proj/gate",
    "up_proj": "gate_up_proj/up",
    "w3": "gate_up_proj/up",
    "down_proj": "down_proj",
    "w2": "down_proj",
}


def is_of_transformers_5(config: Mapping[str, Any]) -> bool:
    """Return whether a configuration belongs to a file of transformers 5 or later."""
    version = re.match(r"\d+", str(config.get("transformers_version", "")))
    return version is not None and int(version[0][:4]) >= _FIRST_VERSION


def name_in_module(name: str, config: Mapping[str, Any]) -> str:
    """Return the name that the module has for a stored name."""
    if is_of_transformers_5(config):
        for pattern, replacement in _NAMES.get(str(config.get("model_type")), ()):
            name = re.sub(pattern, replacement, name)
    return name


def expert_entries(state: State) -> Iterator[Entry]:
    """Iterate over the experts of each block and projection, as one stack (experts, rows, columns)."""
    if not is_of_transformers_5(state.config):
        return
    experts: defaultdict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    for name in state.outlines:
        match = _EXPERT.fullmatch(name)
        if match and match["projection"] in _PARTS:
            experts[match["block"], _PARTS[match["projection"]]][int(match["number"])] = name
    for (block, part), names in experts.items():
        parts = tuple(names[number] for number in sorted(names))
        first = state.outlines[parts[0]]
        is_stack = sorted(names) == list(range(len(names))) and first.is_floating_point() and first.dtype.itemsize > 1
        if is_stack and len(names) > 1 and all(state.shape(each) == first.shape for each in parts) and first.ndim == 2:
            outline = torch.empty(len(parts), *first.shape, dtype=first.dtype, device="meta")
            yield computed_entry(state, f"{block}.{part}", parts, _stacked, outline=outline)


def _stacked(*experts: Tensor) -> Tensor:
    return torch.stack(experts)
