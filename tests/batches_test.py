"""The order of examples; crops, flips, random erasing and running mixup: values
and statistics."""

import itertools

import numpy as np
import pytest
import small_data
import tensorflow as tf
from scipy import stats

from trainers.data import batches, images

RNG = np.random.default_rng(0)


def uniforms(*shape):
    return tf.constant(RNG.random(shape), tf.float32)


def digits(**options):
    return images.load("digits", options=images.Options(**options))


def first(dataset, count):
    """Returns the first batches."""
    return list(itertools.islice(dataset.as_numpy_iterator(), count))


def test_every_example_once_an_epoch():
    part = batches.Part(100)
    found = [i for _, i in first(batches.shuffled(1437, part, 3), 44)]
    stream = np.concatenate(found)[: 3 * 1437].reshape(3, 1437)
    for epoch in stream:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(1437))
    for a, b in itertools.combinations(stream, 2):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.1
    assert abs(np.corrcoef(stream[0], np.arange(1437))[0, 1]) < 0.1
    # A batch larger than an epoch.
    ((step, index),) = first(batches.shuffled(3, batches.Part(9), 0, 2), 1)
    assert step == 2 and sorted(index) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_crop_and_flip_by_hand():
    image = tf.reshape(tf.range(12), [1, 3, 4, 1])  # Rows 0-3, 4-7, 8-11.
    u = tf.constant([[0.6, 0.5]])  # Row 1 of 0..1, column 1 of 0..2.
    crop = batches.random_crop(image, (2, 2), u)
    np.testing.assert_array_equal(crop[0, :, :, 0], [[5, 6], [9, 10]])
    crop = batches.random_crop(image, (2, 2), tf.constant([[0.4, 0.9]]))
    np.testing.assert_array_equal(crop[0, :, :, 0], [[2, 3], [6, 7]])
    two = tf.repeat(image, 2, axis=0)
    flipped = batches.random_flip(two, tf.constant([0.4, 0.5]))
    np.testing.assert_array_equal(flipped[0, 0, :, 0], [3, 2, 1, 0])
    np.testing.assert_array_equal(flipped[1], image[0])
    middle = batches.center_crop(image, (1, 2))
    np.testing.assert_array_equal(middle[0, :, :, 0], [[5, 6]])
    padded = batches.pad(image, 1)
    assert padded.shape == (1, 5, 6, 1)
    np.testing.assert_array_equal(padded[0, 1, :, 0], [0, 0, 1, 2, 3, 0])


def test_crops_are_everywhere_alike():
    places = tf.reshape(tf.range(81), [1, 9, 9, 1])
    places = tf.repeat(places, 20_000, axis=0)
    crops = batches.random_crop(places, (1, 1), uniforms(20_000, 2))
    counts = np.bincount(np.reshape(crops, -1), minlength=81)
    assert stats.chisquare(counts).pvalue > 0.01


def test_erasing_by_hand():
    """20 x 10 pixels; area 0.25 of 200 and aspect 0.5: sides 5 and 10."""
    white = tf.ones([4, 20, 10, 2])
    last = np.float32(1 - 2**-24)
    rows = [
        [0.49, 1, 2 / 7, 0.0, 0.0, 0.0],  # 5 high, 10 wide, at the top.
        [0.49, 1, 2 / 7, 0.9, last, last],  # Swapped, at the lower right.
        [0.50, 1, 2 / 7, 0.0, 0.0, 0.0],  # Not erased.
        [0.00, 0, 1.0, 0.0, 0.5, 0.5],  # Square of 0.02 * 200 = 4 pixels.
    ]
    expected = np.ones([4, 20, 10, 2])
    expected[0, :5] = 0
    expected[1, 10:, 5:] = 0
    expected[3, 9:11, 4:6] = 0  # The middle one of 19 and of 9 places.
    erased = batches.random_erasing(white, tf.constant(rows, tf.float32))
    np.testing.assert_array_equal(erased, expected)


def test_erasing_in_numbers():
    """p = 0.5, areas of 0.02 to 0.25, aspects of 0.3 to 1 both ways."""
    white = tf.ones([20_000, 64, 64, 1])
    holes = np.asarray(
        batches.random_erasing(white, uniforms(20_000, 6))[..., 0] == 0
    )
    height, width = holes.any(axis=2).sum(axis=1), holes.any(axis=1).sum(axis=1)
    np.testing.assert_array_equal(height * width, holes.sum(axis=(1, 2)))
    some = height > 0
    assert np.mean(some) == pytest.approx(0.5, abs=0.015)
    height, width = height[some], width[some]
    area = height * width / 64**2
    assert 0.015 < area.min() < 0.025 and 0.24 < area.max() < 0.26
    assert np.mean(area) == pytest.approx(0.135, abs=0.002)
    assert np.mean(height > width) == pytest.approx(0.5, abs=0.03)
    aspect = np.minimum(height / width, width / height)
    assert 0.25 < aspect.min() < 0.32
    assert np.mean(aspect) == pytest.approx(0.65, abs=0.01)
    # Where the rectangle fits, each place is as likely.
    top = np.argmax(holes.any(axis=2)[some], axis=1)
    place = (top + RNG.random(len(top))) / (64 - height + 1)
    assert stats.kstest(place, "uniform").pvalue > 0.01


def test_batches_are_erased():
    """Half of the images, with zeros in places of their own."""
    whole, erased = (
        digits(random_erasing=erasing) for erasing in (False, True)
    )
    (x, _), (x_erased, _) = (
        next(iter(found.train(1000, 0))) for found in (whole, erased)
    )
    changed = np.asarray(x != x_erased)
    assert np.all(x_erased[changed] == 0)
    assert 0.4 < changed.any(axis=(1, 2, 3)).mean() < 0.55
    assert changed.any(axis=0).mean() > 0.8


def weights(alpha, steps, part, seed=0):
    return np.stack(
        [
            batches.mixup_weights(
                tf.constant(step, tf.int64), part, alpha, seed
            )
            for step in steps
        ]
    )


@pytest.mark.parametrize("alpha", [0.4, 1.0])
def test_mixup_weights_are_beta(alpha):
    part = batches.Part(1000)
    found = weights(alpha, range(1, 11), part)
    fresh = (np.arange(1, 11)[:, None] + np.arange(1000)) % 128 == 0
    np.testing.assert_array_equal(found[fresh], 1)
    mixed = found[~fresh].astype("float64")
    assert np.var(mixed) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)
    assert stats.kstest(mixed, stats.beta(alpha, alpha).cdf).pvalue > 0.01
    assert abs(np.corrcoef(found[0], found[1])[0, 1]) < 0.1
    np.testing.assert_array_equal(weights(alpha, [0], part), 1)
    assert not np.array_equal(found, weights(alpha, range(1, 11), part, 1))


def test_running_mixup_is_the_recursion():
    """Equations 9 and 10 in float64, from the batches without mixup."""
    steps, seed = 140, 5
    raw = digits(one_hot=True)
    mixed = digits(mixup=0.4)
    lam = weights(0.4, range(steps), batches.Part(16), seed)
    x_tilde, y_tilde = np.zeros((16, 8, 8, 1)), np.zeros((16, 10))
    pairs = zip(raw.train(16, seed), mixed.train(16, seed))
    for step, ((x, y), (x_mixed, y_mixed)) in zip(range(steps), pairs):
        w = lam[step].astype("float64")
        old = (1 - w)[:, None] * y_tilde
        y_tilde = w[:, None] * y + old
        x_tilde = (
            w[:, None, None, None] * x + (1 - w)[:, None, None, None] * x_tilde
        )
        np.testing.assert_allclose(x_mixed, x_tilde, atol=1e-6)
        np.testing.assert_allclose(y_mixed, y_tilde, atol=1e-6)
    np.testing.assert_allclose(np.sum(y_mixed, axis=1), 1, atol=1e-6)
    assert np.count_nonzero(np.asarray(y_mixed) > 1e-3) > 2 * 16


def test_mixup_is_resumed_from_as_few_batches_as_matter(monkeypatch):
    monkeypatch.setattr(batches, "MEMORY", 4)
    found = digits(mixup=0.4)
    uninterrupted = first(found.train(8, 7, 1, 2), 10)
    for step in (3, 9):
        resumed = first(found.train(8, 7, 1, 2, first_step=step), 1)
        for a, b in zip(resumed[0], uninterrupted[step], strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "name, padding, flips",
    [
        ("cifar10", 4, True),
        ("svhn_cropped", 4, False),
        ("imagenet2012", 0, True),
        ("mnist", 0, False),
    ],
)
def test_batches_are_crops_and_flips(name, padding, flips, tmp_path):
    """A second implementation, from the images and the numbers of the step."""
    small_data.write(tmp_path, name)
    found = images.load(name, str(tmp_path))
    part, mean = batches.Part(20, 1, 2), 0
    if name == "imagenet2012":
        mean = found.source.mean_image((224, 224), None)
    height, width, _ = found.input_shape
    flipped = []
    raw = found.source.shuffled(part, 3, 0)
    for (step, whole, _), (x, _) in zip(raw.take(6), found.train(20, 3, 1, 2)):
        u = batches.uniforms(3, batches.AUGMENTATION, step, part, 3)
        borders = [padding, padding]
        padded = np.pad(whole, [(0, 0), borders, borders, (0, 0)])
        for image, crop, (row, column, flip) in zip(padded, x, np.asarray(u)):
            top = int(row * (image.shape[0] - height + 1))
            left = int(column * (image.shape[1] - width + 1))
            expected = image[top : top + height, left : left + width]
            if flips and flip < 0.5:
                expected = expected[:, ::-1]
            np.testing.assert_allclose(crop, (expected - mean) / 255, atol=1e-6)
            flipped.append(flip < 0.5)
    assert 15 < sum(flipped) < 45
