"""Selects samples of a complete dataset by scores, presence, areas and quantiles."""

import math

import numpy as np

from seediff_jax.review.finished import ClassFacts
from seediff_jax.review.settings import Criteria


def select(facts: ClassFacts, criteria: Criteria) -> np.ndarray:
    """Selects samples.

    Of samples with equal scores at the edge of a quantile, all are kept.

    Returns:
        bool `[n]`.
    """
    scores, areas = facts.scores, facts.areas
    fits = np.ones(len(scores), bool)
    if criteria.min_score is not None:
        fits &= scores >= criteria.min_score
    if criteria.min_presence is not None:
        fits &= ~(facts.presence < criteria.min_presence)  # NaN is not judged
    if criteria.min_area is not None:
        fits &= areas >= criteria.min_area
    if criteria.max_area is not None:
        fits &= areas <= criteria.max_area
    if criteria.drop_empty:
        fits &= areas > 0
    kept = np.ones(len(facts.indices), bool)
    kept[facts.samples[~fits]] = False
    if criteria.quantile is None:
        return kept
    if not criteria.per_class:
        worst = np.full(len(kept), np.inf)
        np.minimum.at(worst, facts.samples, scores)
        return kept & (worst >= _edge(worst[kept], criteria.quantile))
    best = kept.copy()
    for class_id in np.unique(facts.class_ids):
        own = facts.class_ids == class_id
        edge = _edge(scores[own & kept[facts.samples]], criteria.quantile)
        best[facts.samples[own & (scores < edge)]] = False
    return kept & best


def _edge(scores: np.ndarray, share: float) -> float:
    """The score that this share of the scores reaches."""
    count = math.ceil(share * len(scores) - 1e-9)
    return np.sort(scores)[-count] if count else math.inf


def class_counts(facts: ClassFacts, kept: np.ndarray) -> dict[int, tuple[int, int]]:
    """Counts the samples that have each class: all of them, and those that are kept."""
    counts = {}
    for class_id in np.unique(facts.class_ids).tolist():
        own = np.unique(facts.samples[facts.class_ids == class_id])
        counts[class_id] = (len(own), int(kept[own].sum()))
    return counts
