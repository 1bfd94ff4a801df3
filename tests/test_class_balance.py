"""The order that shows all classes equally often."""

import collections
import concurrent.futures
import itertools
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seediff_jax.class_balance import BalancedOrder


def take(classes, turns):
    order = BalancedOrder(classes)
    return [order[turn] for turn in range(turns)]


def spread(classes, places):
    """How much oftener the commonest class is shown than the rarest."""
    counts = collections.Counter(name for place in places for name in classes[place])
    every = {name for names in classes for name in names}
    return max(counts.values()) - min(counts[name] for name in every)


def plain_order(classes, turns):
    """The rule as the docstring says it, prompt by prompt."""
    every = list(dict.fromkeys(name for names in classes for name in names))
    counts, taken = dict.fromkeys(every, 0), [0] * len(classes)
    for _ in range(turns):
        least = min(every, key=counts.get)
        place = min(
            (k for k, names in enumerate(classes) if least in names),
            key=lambda k: (sum(counts[n] - counts[least] for n in classes[k]), taken[k], k),
        )
        taken[place] += 1
        for name in classes[place]:
            counts[name] += 1
        yield place


sets_of_classes = st.lists(
    st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4, unique=True), min_size=1, max_size=9
)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(sets_of_classes)
def test_the_order_is_that_of_the_rule_applied_prompt_by_prompt(classes):
    assert take(classes, 60) == list(plain_order(classes, 60))


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=12), st.integers(1, 70))
def test_classes_of_single_class_prompts_differ_by_one_turn_at_most(names, turns):
    places = take([[name] for name in names], turns)
    assert spread([[name] for name in names], places) <= 1


def test_prompts_of_a_class_take_turns_in_their_order():
    assert take([["dog"], ["cat"], ["dog"], ["dog"]], 10) == [0, 1, 2, 1, 3, 1, 0, 1, 2, 1]


def test_prompts_of_several_classes_are_balanced_where_going_round_is_not():
    rng = np.random.default_rng(0)
    rarity = 1 / np.arange(1, 21)
    rarity /= rarity.sum()
    classes = [
        [str(k) for k in rng.choice(20, size=rng.integers(1, 5), replace=False, p=rarity)]
        for _ in range(500)
    ]
    places = take(classes, 2000)
    around = [turn % 500 for turn in range(2000)]
    assert spread(classes, around) > 500
    # Some prompt holds each class with others that are not above it by much.
    assert spread(classes, places) <= 5


def test_a_class_that_comes_with_all_others_does_not_unsettle_the_rest():
    classes = [["dog", "sky"], ["dog", "sky"], ["sky", "cat"]]
    assert take(classes, 6) == [0, 2, 1, 2, 0, 2]


def test_turns_may_be_asked_in_any_order():
    classes = [["a"], ["a", "b"], ["b", "c"]]
    order = BalancedOrder(classes)
    late = order[30]
    assert [order[turn] for turn in range(31)] == [*itertools.islice(plain_order(classes, 31), 31)]
    assert order[30] == late


def test_threads_see_one_order():
    classes = [[name] for name in "abcdefg"]
    order, together = BalancedOrder(classes), threading.Barrier(4)

    def read(_):
        together.wait()
        return [order[turn] for turn in range(2000)]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads are changed in the midst of a turn
    try:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            seen = list(pool.map(read, range(4)))
    finally:
        sys.setswitchinterval(interval)
    assert seen == [[turn % 7 for turn in range(2000)]] * 4


@pytest.mark.parametrize("classes", [[["a"]], [["a", "b"]] * 3])
def test_prompts_with_one_list_of_classes_go_round(classes):
    assert take(classes, 7) == [turn % len(classes) for turn in range(7)]
