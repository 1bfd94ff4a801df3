"""PromptPlan: the prompt of each image."""

import collections
import concurrent.futures
import hashlib
import itertools
import json
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seediff_jax.prompts.prompt_plan import BalancedOrder, PromptPlan, shuffled_order
from seediff_jax.prompts.prompt_record import PromptRecord

RECORDS = tuple(PromptRecord(f"{name} {k}", (name,)) for name, k in ["a1", "a2", "b1", "c1", "a3"])


def prompts(plan, count):
    return [plan.record(index).prompt for index in range(count)]


def philox(key, counter):
    """Philox 4x64-10 of Salmon et al., SC 2011 (doi 10.1145/2063384.2063405), in whole numbers."""
    low, (x0, x1, x2, x3), (k0, k1) = 2**64 - 1, counter, (key & 2**64 - 1, key >> 64)
    for _ in range(10):
        p, q = 0xD2E7470EE14C6C93 * x0, 0xCA5A826395121157 * x2
        x0, x1, x2, x3 = (q >> 64) ^ x1 ^ k0, q & low, (p >> 64) ^ x3 ^ k1, p & low
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & low, (k1 + 0xBB67AE8584CAA73B) & low
    return x0, x1, x2, x3


def test_images_cycle_through_the_prompts():
    plan = PromptPlan(records=RECORDS)
    assert (len(plan), plan.num_images) == (5, 5)
    assert prompts(plan, 7) == ["a 1", "a 2", "b 1", "c 1", "a 3", "a 1", "a 2"]


def test_images_of_a_prompt_follow_one_another():
    plan = PromptPlan(records=RECORDS, images_per_prompt=2)
    assert (len(plan), plan.num_images) == (5, 10)
    assert prompts(plan, 12) == [
        *("a 1", "a 1", "a 2", "a 2", "b 1", "b 1", "c 1", "c 1", "a 3", "a 3", "a 1", "a 1")
    ]


def test_every_shuffled_round_is_the_same_permutation():
    plan = PromptPlan(records=RECORDS, shuffle_seed=1)
    assert sorted(prompts(plan, 5)) == sorted(record.prompt for record in RECORDS)
    assert prompts(plan, 5) != [record.prompt for record in RECORDS]
    assert prompts(plan, 10)[5:] == prompts(plan, 5)
    double = PromptPlan(records=RECORDS, shuffle_seed=1, images_per_prompt=2)
    assert prompts(double, 10)[::2] == prompts(double, 10)[1::2] == prompts(plan, 5)


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**64 - 1])
def test_the_random_order_sorts_by_the_numbers_of_philox(seed):
    numbers = [x for k in range(1, 26) for x in philox(seed, (k, 0, 0, 0))]
    assert shuffled_order(97, seed).tolist() == sorted(range(97), key=numbers.__getitem__)


def test_other_seeds_give_other_orders():
    orders = {tuple(shuffled_order(20, seed).tolist()) for seed in range(50)}
    assert len(orders) == 50


def test_classes_are_balanced_at_any_number_of_images():
    plan = PromptPlan(records=RECORDS, balance_classes=True, images_per_prompt=3)
    counts = dict.fromkeys("abc", 0)
    for index in range(100):
        counts[plan.record(index).classes[0]] += 1
        assert max(counts.values()) - min(counts.values()) <= 3


def test_balanced_turns_take_the_prompts_in_the_shuffled_order():
    plan = PromptPlan(records=RECORDS, shuffle_seed=5)
    balanced = PromptPlan(records=RECORDS, shuffle_seed=5, balance_classes=True)
    shuffled, taken = prompts(plan, 5), prompts(balanced, 9)
    for name in "abc":
        of_class = [p for p in shuffled if p[0] == name]
        assert [p for p in taken if p[0] == name] == (of_class * 3)[:3]


@pytest.mark.parametrize("options", [{}, {"shuffle_seed": 3}, {"balance_classes": True}])
def test_a_large_index_has_the_prompt_found_by_counting(options):
    plan = PromptPlan(records=RECORDS, images_per_prompt=7, **options)
    far = plan.record(10**4).prompt
    walk = prompts(PromptPlan(records=RECORDS, images_per_prompt=7, **options), 10**4 + 1)
    assert far == walk[-1]


def test_settings_survive_json():
    settings = PromptPlan(records=RECORDS, shuffle_seed=3).settings()
    assert json.loads(json.dumps(settings)) == settings


def test_the_hash_depends_only_on_prompts_classes_and_synonyms():
    records = (PromptRecord("a dog", ("dog", "sky"), ("sky",)),)
    text = b'["a dog", ["dog"], ["sky"]]{"a": [], "b": ["x"]}'
    for options in ({"images_per_prompt": 2}, {"shuffle_seed": 3}, {"balance_classes": True}):
        plan = PromptPlan(records=records, synonyms={"b": ("x",), "a": ()}, **options)
        assert plan.settings()["prompts_sha256"] == hashlib.sha256(text).hexdigest()


@pytest.mark.parametrize(
    "options",
    [
        {"records": RECORDS[:4]},
        {"records": RECORDS[::-1]},
        {"records": (*RECORDS[:4], PromptRecord("a 3", ("A",)))},
        {"records": (*RECORDS[:4], PromptRecord("a 3", ("a",), ("a",)))},
        {"synonyms": {"a": ["x"]}},
        {"images_per_prompt": 2},
        {"shuffle_seed": 0},
        {"shuffle_seed": 1},
        {"balance_classes": True},
    ],
)
def test_settings_tell_other_plans_apart(options):
    plans = [PromptPlan(records=RECORDS), PromptPlan(**{"records": RECORDS} | options)]
    assert plans[0].settings() != plans[1].settings()


def test_the_plan_knows_the_largest_number_of_classes():
    two = PromptRecord("a", ("a", "sky"), ("sky",))
    for records, expected in [(RECORDS, (1, False)), ((*RECORDS, two), (2, True))]:
        plan = PromptPlan(records=records)
        assert (plan.max_classes, plan.has_unnamed) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"records": ()}, "no prompt; at least one"),
        ({"images_per_prompt": 0}, "images_per_prompt=0 must be 1 or more"),
        ({"shuffle_seed": -1}, "shuffle_seed=-1 must lie in"),
        ({"shuffle_seed": 2**64}, "must lie in"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PromptPlan(**{"records": RECORDS} | options)


def test_a_negative_index_is_refused():
    with pytest.raises(ValueError, match="index=-1"):
        PromptPlan(records=RECORDS).record(-1)


def test_a_shuffled_order_is_a_permutation():
    np.testing.assert_array_equal(np.sort(shuffled_order(1000, 9)), np.arange(1000))


# Balanced classes


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


def test_prompts_of_several_classes_are_balanced_better_than_by_cycling():
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


def test_a_class_in_all_prompts_does_not_change_the_balance_of_others():
    classes = [["dog", "sky"], ["dog", "sky"], ["sky", "cat"]]
    assert take(classes, 6) == [0, 2, 1, 2, 0, 2]


def test_turns_may_be_read_in_any_order():
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
def test_prompts_with_equal_classes_cycle(classes):
    assert take(classes, 7) == [turn % len(classes) for turn in range(7)]
