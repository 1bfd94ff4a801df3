"""Name tables: a parameter's path in Linen <-> its name in a diffusers checkpoint.

The modules are named after the checkpoints, so the tables hold only what cannot be spelled the same
way: numbered submodules, the text encoder's prefix, and spellings of older checkpoints. Layouts
differ in kernels alone: torch has (out, in) and (out, in, height, width), Linen (in, out) and
(height, width, in, out).
"""

import re

COMPONENTS = ("text_encoder", "text_encoder_2", "unet", "vae")
"""Parts that a model can have, with weights: folders of a checkpoint and keys of the params."""

# Linen path, joined by ".", without its leaf -> diffusers name; every row is applied, in order.
_TEXT_RENAMES = (
    (r"^layers_(\d+)\.", r"text_model.encoder.layers.\1."),
    (r"^(\w+_embedding)$", r"text_model.embeddings.\1"),
    (r"^final_layer_norm$", r"text_model.final_layer_norm"),
)
_RENAMES = {
    "text_encoder": _TEXT_RENAMES,
    "text_encoder_2": _TEXT_RENAMES,
    "unet": (
        (r"\bnet_0_proj\b", "net.0.proj"),
        (r"\b(net|to_out|attentions|resnets|transformer_blocks)_(\d+)\b", r"\1.\2"),
        (r"\b(down_blocks|up_blocks|downsamplers|upsamplers)_(\d+)\b", r"\1.\2"),
    ),
    "vae": (
        (r"\battentions_0\.attention\b", "attentions_0"),
        (r"\b(to_out|attentions|resnets)_(\d+)\b", r"\1.\2"),
        (r"\b(down_blocks|up_blocks|downsamplers|upsamplers)_(\d+)\b", r"\1.\2"),
    ),
}
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}

# Other spellings of a diffusers name -> the one above.
_TEXT_SYNONYMS = ((r"^(embeddings|encoder|final_layer_norm)\.", r"text_model.\1."),)
_SYNONYMS = {
    "text_encoder": _TEXT_SYNONYMS,
    "text_encoder_2": _TEXT_SYNONYMS,
    "unet": (),
    "vae": (
        (r"(attentions\.0)\.query\.", r"\1.to_q."),
        (r"(attentions\.0)\.key\.", r"\1.to_k."),
        (r"(attentions\.0)\.value\.", r"\1.to_v."),
        (r"(attentions\.0)\.proj_attn\.", r"\1.to_out.0."),
    ),
}
# Buffers that are no weights: 0, 1, 2, ...
_TEXT_IGNORED = ("text_model.embeddings.position_ids",)
_IGNORED = {
    "text_encoder": _TEXT_IGNORED,
    "text_encoder_2": _TEXT_IGNORED,
    "unet": (),
    "vae": (),
}


def checkpoint_name(component: str, path: tuple[str, ...]) -> str:
    """The diffusers name of the parameter at `path` in the Linen params of a component."""
    *module, leaf = path
    return f"{_apply(_RENAMES[component], '.'.join(module))}.{_LEAVES[leaf]}"


def canonical_name(component: str, name: str) -> str | None:
    """The present diffusers spelling of a tensor's name; None for a buffer that is no weight."""
    name = _apply(_SYNONYMS[component], name)
    return None if name in _IGNORED[component] else name


def checkpoint_axes(leaf: str, ndim: int) -> tuple[int, ...]:
    """Axes by which the array of a Linen leaf is transposed for a checkpoint."""
    if leaf != "kernel":
        return tuple(range(ndim))
    return {2: (1, 0), 4: (3, 2, 0, 1)}[ndim]


def _apply(rows: tuple[tuple[str, str], ...], name: str) -> str:
    for pattern, replacement in rows:
        name = re.sub(pattern, replacement, name)
    return name
