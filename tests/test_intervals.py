import math

import numpy as np
import pytest

from fmlab.intervals import Interval, bootstrap, wilson


def test_the_mean_and_what_is_behind_it():
    found = bootstrap([1, 2, 3, 6], clusters=["a", "a", "b", "b"])
    assert (found.mean, found.n, found.clusters) == (3.0, 4, 2)
    assert (found.low, found.high) == (1.5, 4.5)  # of two clusters a quarter of the draws is twice the one or the other
    assert str(found) == "3.000 [1.500, 4.500] n=4"
    assert bootstrap([1, 2, 3, 6]).clusters == 4


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(0).normal(size=30)
    assert bootstrap(values, seed=1) == bootstrap(values, seed=1) != bootstrap(values, seed=2)


def covered(draw, trials=300):
    """How often the interval holds the true mean, 0."""
    hits = 0
    for trial in range(trials):
        values, clusters = draw(np.random.default_rng(trial))
        found = bootstrap(values, clusters, resamples=400, seed=trial)
        hits += found.low <= 0 <= found.high
    return hits / trials


def clustered(rng, clusters=25, size=8):
    """Values of a document lie together."""
    values = rng.normal(size=(clusters, 1)) + 0.3 * rng.normal(size=(clusters, size))
    return values.ravel(), np.repeat(np.arange(clusters), size)


def test_coverage_is_about_95_percent():
    assert 0.88 <= covered(lambda rng: (rng.normal(size=40), None)) <= 0.99
    assert 0.88 <= covered(clustered) <= 0.99


def test_without_its_clusters_the_interval_is_far_too_narrow():
    assert covered(lambda rng: (clustered(rng)[0], None)) < 0.65
    values, clusters = clustered(np.random.default_rng(5))
    narrow, wide = bootstrap(values), bootstrap(values, clusters)
    assert wide.mean == narrow.mean and wide.high - wide.low > 1.8 * (narrow.high - narrow.low)


def test_clusters_of_unequal_size_weigh_by_their_values():
    found = bootstrap([0.0] * 9 + [1.0], clusters=[0] * 9 + [1])
    assert found.mean == 0.1 and (found.low, found.high) == (0.0, 1.0)


def test_a_single_cluster_tells_nothing_of_the_spread():
    for found in (bootstrap([3.0]), bootstrap([1, 2, 3], clusters=["x"] * 3)):
        assert math.isnan(found.low) and math.isnan(found.high) and found.clusters == 1
        assert not found.overlaps(found)


@pytest.mark.parametrize(
    ("values", "clusters", "says"),
    [
        ([], None, r"shape \(0,\); give at least one number"),
        ([[1.0], [2.0]], None, r"shape \(2, 1\); give .* in one dimension"),
        ([1.0, float("nan")], None, "value nan is not finite; leave out what could not be measured"),
        ([1.0, float("-inf")], None, "value -inf is not finite"),
        ([1.0, 2.0], [1], "1 clusters for 2 values; name the cluster of each value"),
    ],
)
def test_values_that_have_no_mean(values, clusters, says):
    with pytest.raises(ValueError, match=says):
        bootstrap(np.array(values), clusters)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # Newcombe 1998, table I, and Wilson's formula worked by hand
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (0, 10, 0.0, 0.2775),
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
    ],
)
def test_wilson_as_published(successes, n, low, high):
    found = wilson(successes, n)
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)
    assert (found.mean, found.n) == (successes / n, n) and 0 <= found.low <= found.mean <= found.high <= 1


@pytest.mark.parametrize(("successes", "n"), [(-1, 5), (6, 5), (0, 0), (0, -1)])
def test_proportions_that_are_none(successes, n):
    with pytest.raises(ValueError, match=f"{successes} successes of {n}; give 0 <= successes <= n and n >= 1"):
        wilson(successes, n)


def test_overlap():
    a, b, c = (Interval(0.5, low, high, 9, 9) for low, high in ((0.1, 0.4), (0.4, 0.6), (0.41, 0.9)))
    assert a.overlaps(b) and b.overlaps(a) and b.overlaps(c) and not a.overlaps(c) and not c.overlaps(a)
