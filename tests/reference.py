"""The mask method (SeeDiff, arXiv 2507.19808) in plain NumPy and OpenCV, with loops.

The reference of tests and benchmarks, written from the equations for clarity, without JAX. Small
arrays are float64; products with a self-attention matrix keep the dtype of that matrix.
"""

import cv2
import numpy as np


def min_max(field):
    low, high = field.min(), field.max()
    if high == low:
        return np.zeros_like(field)
    return (field - low) / (high - low)


def otsu_foreground(soft):
    levels = (255 * np.clip(soft, 0, 1) ** 2).astype(np.uint8)
    threshold, _ = cv2.threshold(levels.reshape(1, -1), 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    return levels > threshold


def resize_cubic(field, side):
    """Resizes to the `side` of a square, or to a height and width."""
    height, width = (side, side) if isinstance(side, int) else side
    return cv2.resize(field, (width, height), interpolation=cv2.INTER_CUBIC)


def level_size(height, level):
    return height, len(level) // height


def seed_map(cross_attention):
    total = np.zeros(cross_attention.shape[1])
    for layer in cross_attention.astype(np.float64):
        weight = 1.0 if layer.var(ddof=1) > 1e-4 else 0.01
        total += weight * min_max(layer)
    return min_max(total)


def find_seeds(soft):
    return otsu_foreground(soft)


def seed_similarity(seeds, self_attention):
    """Sums the cosine similarity to each seed, one by one, as the authors' release does."""
    rows = self_attention / np.linalg.norm(self_attention, axis=1, keepdims=True)
    total = np.zeros(len(seeds))
    for seed in np.flatnonzero(seeds):
        total += rows @ rows[seed]
    return total


def cosine_power(field, self_attention, power):
    """Multiplies by the table of all cosine similarities, which the package never forms."""
    rows = self_attention / np.linalg.norm(self_attention, axis=1, keepdims=True)
    return np.linalg.matrix_power(rows @ rows.T, power) @ field


def transition_power(field, self_attention, power):
    """Forms the power of the transition matrix, which the package never does."""
    transition = self_attention / self_attention.sum(axis=1, keepdims=True)
    return np.linalg.matrix_power(transition, power) @ field


def doubly_stochastic(self_attention, rounds=15):
    """Divides columns and rows by their sums in turn, which changes the matrix itself."""
    for _ in range(rounds):
        self_attention = self_attention / self_attention.sum(axis=0, keepdims=True)
        self_attention = self_attention / self_attention.sum(axis=1, keepdims=True)
    return self_attention


def spread(field, self_attention, affinity, power):
    if affinity == "sinkhorn":
        scaled = doubly_stochastic(self_attention)
        return np.linalg.matrix_power(scaled, power) @ field.astype(np.float64)
    if affinity == "transition":
        return transition_power(field.astype(np.float64), self_attention, power)
    if power > 1:
        return cosine_power(field.astype(np.float64), self_attention, power)
    return seed_similarity(field, self_attention)


def expand(seeds, self_attention, affinity="cosine", power=1, background=True):
    first, *finer = sorted(self_attention)
    soft = min_max(spread(seeds, self_attention[first], affinity, power))
    soft = soft.reshape(level_size(first, self_attention[first]))
    for side in finer:
        upsampled = resize_cubic(soft, level_size(side, self_attention[side]))
        soft = min_max(upsampled)
        if background:
            outside = ~otsu_foreground(upsampled).ravel()
            similarity = min_max(spread(outside, self_attention[side], affinity, power))
            soft = min_max(soft * (1 - similarity.reshape(soft.shape)))
    return soft


def soft_mask(cross_attention, self_attention, image_side, **expand_options):
    seeds = find_seeds(seed_map(cross_attention))
    return min_max(resize_cubic(expand(seeds, self_attention, **expand_options), image_side))


def cross_attention_mask(cross_attention, image_side):
    height, width = (image_side, image_side) if isinstance(image_side, int) else image_side
    rows = round((cross_attention.shape[1] * height / width) ** 0.5)
    return min_max(resize_cubic(seed_map(cross_attention).reshape(rows, -1), image_side))


def exponentiation_mask(cross_attention, self_attention, image_side, power=4):
    first, *finer = sorted(self_attention)
    side = finer[0] if finer else first
    size = level_size(side, self_attention[side])
    field = resize_cubic(cross_attention.astype(np.float64).mean(axis=0).reshape(first, -1), size)
    field = min_max(transition_power(field.ravel(), self_attention[side], power))
    return min_max(resize_cubic(field.reshape(size), image_side))


def label_map(soft_masks, threshold, uncertain=None):
    classes, height, width = soft_masks.shape
    labels = np.zeros((height, width), np.uint8)
    for y in range(height):
        for x in range(width):
            winner = max(range(classes), key=lambda k: soft_masks[k, y, x])
            largest = soft_masks[winner, y, x]
            if largest > threshold:
                labels[y, x] = winner + 1
            elif uncertain is not None and uncertain <= largest < threshold:
                labels[y, x] = 255
    return labels


def neighbours(field, y, x, dilation):
    """Lists the 8 values around one pixel, edges replicated."""
    height, width = field.shape[:2]
    return [
        field[np.clip(y + dy, 0, height - 1), np.clip(x + dx, 0, width - 1)]
        for dy in (-dilation, 0, dilation)
        for dx in (-dilation, 0, dilation)
        if (dy, dx) != (0, 0)
    ]


def neighbour_weights(image, dilations):
    """Computes weights `[H, W, 8 * len(dilations)]`, pixel by pixel."""
    image = image.astype(np.float64)
    height, width, channels = image.shape
    weights = np.zeros((height, width, 8 * len(dilations)))
    for y in range(height):
        for x in range(width):
            around = [neighbours(image, y, x, dilation) for dilation in dilations]
            sampled = np.concatenate([[image[y, x], *values] for values in around])
            unit = 1e-8 + 0.2 * sampled.std(axis=0, ddof=1)
            distances = np.abs(np.concatenate(around) - image[y, x]) / unit
            closeness = np.exp(-distances.sum(axis=1) / channels)
            weights[y, x] = closeness / closeness.sum()
    return weights


def refine(image, soft_mask, iterations, dilations=(1,)):
    weights = neighbour_weights(image, dilations)
    soft = soft_mask.astype(np.float64)
    for _ in range(iterations):
        refined = np.zeros_like(soft)
        for y, x in np.ndindex(soft.shape):
            values = np.concatenate([neighbours(soft, y, x, dilation) for dilation in dilations])
            refined[y, x] = weights[y, x] @ values
        soft = refined
    return soft
