"""Random attention with a realistic structure: objects are regions that attend to themselves.

A side is an integer for a square, or a pair of height and width.
"""

import numpy as np

NUM_HEADS = 8


def softmax(logits):
    logits -= logits.max(axis=1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=1, keepdims=True)
    return logits


def grid(side):
    """Returns the row-major centres of the locations of a level, `[n, 2]` in [0, 1]."""
    size = (side, side) if isinstance(side, int) else side
    rows, columns = ((np.arange(count) + 0.5) / count for count in size)
    return np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)


def random_blobs(rng, num_objects):
    """Draws centres and radii of elliptic objects."""
    return rng.uniform(0.25, 0.75, (num_objects, 2)), rng.uniform(0.12, 0.3, (num_objects, 2))


def membership(blobs, side):
    """Computes how much each location belongs to each object, `[n, objects]` in (0, 1)."""
    centres, radii = blobs
    distance = np.linalg.norm((grid(side)[:, None] - centres) / radii, axis=-1)
    return 1 / (1 + np.exp(12 * (distance - 1)))


def random_self_attention(rng, blobs, side):
    """Draws head-summed self-attention: high within a region and nearby, plus noise."""
    inside = membership(blobs, side)
    features = np.concatenate(
        [3 * inside, 2 * grid(side), 0.3 * rng.normal(size=(len(inside), 4))], 1
    )
    features = features.astype(np.float32)
    norms = (features**2).sum(axis=1)
    logits = 2 * features @ features.T - norms[:, None] - norms[None, :]
    logits += 0.5 * rng.standard_normal(logits.shape, dtype=np.float32)
    return NUM_HEADS * softmax(logits)


def random_cross_attention(rng, blobs, side, num_layers=5):
    """Draws head-summed cross-attention of objects, `[layers, n, objects]`; layer 0 is flat."""
    inside = membership(blobs, side)
    strength = rng.uniform(0.3, 0.8, (num_layers, 1, 1))
    strength[0] = 0.004
    noise = 0.1 * rng.random((num_layers, *inside.shape))
    return (strength * (inside + noise) + 0.05).astype(np.float32)


def random_attention(rng_seed, sides, num_objects=2):
    """`(cross_attention [layers, n0, c], {side or height: [n, n]})` of one image, all float32."""
    rng = np.random.default_rng(rng_seed)
    blobs = random_blobs(rng, num_objects)
    cross_attention = random_cross_attention(rng, blobs, min(sides))
    heights = [side if isinstance(side, int) else side[0] for side in sides]
    levels = [random_self_attention(rng, blobs, side) for side in sides]
    return cross_attention, dict(zip(heights, levels, strict=True))
