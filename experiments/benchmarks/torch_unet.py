"""diffusers' UNet with random weights, and attention that keeps its probabilities."""

import torch
from diffusers import UNet2DConditionModel

from experiments.benchmarks.networks import UNetInputs


def make_unet(options: dict) -> UNet2DConditionModel:
    """Makes a UNet from a JSON config; it uses scaled_dot_product_attention, the default."""
    torch.manual_seed(0)
    return UNet2DConditionModel.from_config(options).eval()


def to_torch(inputs: UNetInputs) -> tuple[torch.Tensor, ...]:
    """Converts the arguments of a UNet call to torch, channels first."""
    latents = torch.from_numpy(inputs.latents).permute(0, 3, 1, 2).contiguous()
    return latents, torch.from_numpy(inputs.timesteps), torch.from_numpy(inputs.text_embeddings)


class KeptProbs:
    """Attention processor that appends the probabilities of all heads and rows to a list."""

    def __init__(self, kept: list[torch.Tensor]):
        self.kept = kept

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **unused):
        """`[b, n, c]` -> `[b, n, c]`."""
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key = attn.head_to_batch_dim(attn.to_k(source))
        value = attn.head_to_batch_dim(attn.to_v(source))
        probs = attn.get_attention_scores(query, key)
        self.kept.append(probs)
        return attn.to_out[0](attn.batch_to_head_dim(probs @ value))


def keep_probs(unet: UNet2DConditionModel, kept: list[torch.Tensor]) -> None:
    """Makes every attention layer keep its probabilities in `kept`; the caller empties it."""
    unet.set_attn_processor(KeptProbs(kept))
