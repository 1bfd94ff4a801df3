"""diffusers pipelines with random weights, and the attention probabilities of their layers."""

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from tests.helpers.random_models import (
    END,
    PADDING_2,
    SCHEDULER,
    START,
    TEXT,
    UNET,
    VAE,
    XL_TEXT_2,
    XL_UNET,
    write_small_tokenizer,
)

ATTENDING = {"down": "CrossAttnDownBlock2D", "up": "CrossAttnUpBlock2D"}
PLAIN = {"down": "DownBlock2D", "up": "UpBlock2D"}


def blocks(pattern):
    """Makes the block lists of a UNet, fine to coarse: "a" has attention, "p" has none."""
    kinds = [ATTENDING if letter == "a" else PLAIN for letter in pattern]
    return {
        "down_block_types": [kind["down"] for kind in kinds],
        "up_block_types": [kind["up"] for kind in reversed(kinds)],
    }


def to_torch(images):
    """Converts NHWC NumPy to NCHW torch."""
    return torch.from_numpy(np.asarray(images).transpose(0, 3, 1, 2).copy())


def to_numpy(tensor):
    """Converts NCHW torch to NHWC NumPy."""
    return tensor.numpy().transpose(0, 2, 3, 1)


def randomise(module, seed):
    """Draws weights with which all paths matter: no norm is 1, no bias is 0."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            values = torch.randn(parameter.shape, generator=random)
            if parameter.ndim == 1:
                is_scale = "norm" in name and name.endswith("weight")
                values = 0.3 * values + is_scale
            elif "embedding" not in name or "time_embedding" in name:
                # Wider queries and keys, so that the softmax is far from uniform.
                width = 1.5 if any(f"{part}." in name for part in ("to_q", "to_k", "q_proj")) else 1
                values = values * width / parameter[0].numel() ** 0.5
            parameter.copy_(values)
    return module.eval()


def random_text_encoder(options, seed=0):
    return randomise(CLIPTextModel(_text_config(TEXT | options)), seed)


def random_text_encoder_2(options, seed=3):
    return randomise(CLIPTextModelWithProjection(_text_config(XL_TEXT_2 | options)), seed)


def _text_config(options):
    tokens = {"bos_token_id": TEXT["vocab_size"] - 2, "eos_token_id": TEXT["vocab_size"] - 1}
    tokens["pad_token_id"] = tokens["eos_token_id"]
    return CLIPTextConfig(**tokens | options)


def random_unet(options, seed=1):
    return randomise(UNet2DConditionModel(**UNET | options), seed)


def random_vae(options, seed=2):
    config = VAE | options
    count = len(config["block_out_channels"])
    blocks = {
        "down_block_types": ["DownEncoderBlock2D"] * count,
        "up_block_types": ["UpDecoderBlock2D"] * count,
    }
    return randomise(AutoencoderKL(**blocks | config), seed)


def random_pipeline(folder, text=None, unet=None, vae=None, scheduler=None):
    """Makes a StableDiffusionPipeline; writes the tokenizer to `folder`."""
    options = dict(SCHEDULER, **(scheduler or {}))
    kind = {"PNDMScheduler": PNDMScheduler, "DDIMScheduler": DDIMScheduler}
    tokenizer = CLIPTokenizer.from_pretrained(write_small_tokenizer(folder))
    assert (tokenizer.bos_token, tokenizer.eos_token) == (START, END)
    return StableDiffusionPipeline(
        text_encoder=random_text_encoder(text or {}),
        unet=random_unet(unet or {}),
        vae=random_vae(vae or {}),
        scheduler=kind[options.pop("_class_name")](**options),
        tokenizer=tokenizer,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def random_xl_pipeline(
    folder, text=None, text_2=None, unet=None, vae=None, scheduler=None, **options
):
    """Makes a StableDiffusionXLPipeline; writes both tokenizers to `folder`."""
    first = random_pipeline(folder / "tokenizer", text, XL_UNET | (unet or {}), vae, scheduler)
    parts = ("text_encoder", "unet", "vae", "scheduler", "tokenizer")
    second = write_small_tokenizer(folder / "tokenizer_2", PADDING_2)
    return StableDiffusionXLPipeline(
        **{name: getattr(first, name) for name in parts},
        text_encoder_2=random_text_encoder_2(text_2 or {}),
        tokenizer_2=CLIPTokenizer.from_pretrained(second),
        add_watermarker=False,
        **options,
    )


class CapturedProbs:
    """Attention processor that keeps the probabilities, summed over heads.

    If `watched` has the embeddings of other texts, it also keeps the probabilities of the last
    queries with these texts as the only keys.
    """

    def __init__(self):
        self.head_sum = None
        self.watched, self.watched_head_sum = None, None

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **unused):
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            attn.head_to_batch_dim(projection(states))
            for projection, states in (
                (attn.to_q, hidden_states),
                (attn.to_k, source),
                (attn.to_v, source),
            )
        )
        probs = attn.get_attention_scores(query, key)
        self.head_sum = self._head_sum(attn, probs)
        if encoder_hidden_states is not None and self.watched is not None:
            query = query[-len(self.watched) * attn.heads :]
            logits = query @ attn.head_to_batch_dim(attn.to_k(self.watched)).mT
            self.watched_head_sum = self._head_sum(attn, (attn.scale * logits).softmax(-1))
        return attn.to_out[0](attn.batch_to_head_dim(probs @ value))

    @staticmethod
    def _head_sum(attn, probs):
        return probs.unflatten(0, (-1, attn.heads)).sum(1).numpy()


def capture_probs(unet, layers=None):
    """Makes the UNet keep its attention; a call fills the returned `{layer: CapturedProbs}`."""
    names = [name.removesuffix(".processor") for name in unet.attn_processors]
    captured = {name: CapturedProbs() for name in names if layers is None or name in layers}
    processors = {
        f"{name}.processor": captured.get(name, unet.attn_processors[f"{name}.processor"])
        for name in names
    }
    unet.set_attn_processor(processors)
    return captured
