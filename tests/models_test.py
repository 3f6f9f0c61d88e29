"""Models of the trainers: names, sizes, coverage, values."""

import math
import subprocess
import sys

import keras
import numpy as np
import pytest

import tfkfac
from tfkfac import registry
from trainers import models
from trainers.layers import GhostBatchNormalization
from trainers.models import resnet50, small_images, transformer
from trainers.models.small_images import resnet_cifar
from trainers.models.transformer import MaskLike, SinusoidalPositions

RNG = np.random.default_rng(0)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def parameters(model):
    return sum(math.prod(v.shape) for v in model.trainable_variables)


def named(model):
    return [layer.name for layer in model.layers if layer.weights]


def tiny_transformer(**options):
    return transformer.transformer(
        11, blocks=2, width=8, heads=2, hidden=16, **options
    )


def images(batch, size, channels=3):
    return RNG.normal(size=(batch, size, size, channels)).astype("float32")


# Names.


def test_each_name_has_a_maker():
    for module, names in (
        (small_images, set(models.NAMES) - {"resnet50"}),
        (resnet50, {"resnet50"}),
        (transformer, {*models.LANGUAGE_NAMES}),
    ):
        assert {*module.MODELS} == names
        for name in names:
            assert models.maker(name) is module.MODELS[name]
    with pytest.raises(KeyError, match="resnet9"):
        models.maker("resnet9")


def test_one_module_of_models_is_imported():
    program = """
import sys
from trainers import models
models.maker(sys.argv[1])
print(*sorted(m for m in sys.modules if m.startswith("trainers.models.")))
"""
    for name in ("resnet20", "small_transformer"):
        done = subprocess.run(
            [sys.executable, "-c", program, name],
            capture_output=True,
            text=True,
            check=True,
        )
        module = models.maker(name).func.__module__
        assert done.stdout.split() == [module]


# Sizes.


@pytest.mark.parametrize(
    "name, exactly, published",
    [
        ("resnet8", 75_050, None),
        ("resnet8_bn", 75_290, None),
        ("resnet20", 269_722, "0.27"),  # He et al. 2015, table 6.
        ("resnet32", 464_154, "0.46"),
        ("resnet32_ghost", 464_154, "0.46"),
        ("vgg11", 9_228_362, None),
        ("vgg11_ghost", 9_228_362, None),
        ("alexnet", 2_472_266, "2.47"),
    ],
)
def test_parameters_on_32x32_images(name, exactly, published):
    make = models.maker(name)
    model = make((32, 32, 3), 10)
    assert model.name == name
    assert parameters(model) == exactly
    if published is not None:
        assert f"{exactly / 1e6:.2f}" == published
    # Curvature is stored by the names of the layers: no numbered ones.
    again = make((32, 32, 3), 10)
    assert named(again) == named(model)


@pytest.mark.parametrize("name", sorted(small_images.MODELS))
def test_models_take_the_smallest_images(name):
    assert models.maker(name)((8, 8, 1), 10).output_shape == (None, 10)


def test_transformer_parameters():
    model = models.maker("transformer")()
    embedding = 32_768 * 512
    attention = 4 * (512 * 512 + 512)
    feed_forward = 512 * 2048 + 2048 + 2048 * 512 + 512
    block = attention + feed_forward + 2 * 2 * 512
    # A block is as large as PyTorch's nn.TransformerEncoderLayer(512, 8).
    assert block == 3_152_384
    assert parameters(model) == embedding + 2 * block == 23_081_984
    assert_covered(model, blocks=1 + 2 * 8)


def assert_covered(model, blocks):
    lines = []
    optimizer = tfkfac.KFAC(model=model)
    optimizer.summary(print_fn=lines.append)
    total = parameters(model)
    sentence = (
        f"K-FAC covers {total:,} of {total:,} trainable parameters (100.0 %) "
        f"in {blocks} blocks"
    )
    assert sentence in lines[-1]
    print(lines[-1].splitlines()[-1])


def test_resnet20_is_covered():
    # 19 convolutions, a normalization after each, a dense layer.
    assert_covered(models.maker("resnet20")((32, 32, 3), 10), blocks=39)


def test_resnet50():
    """107 layers; the factors take the bytes of Osawa et al. 2019, 5.4."""
    model = models.maker("resnet50")((224, 224, 3), 1000)
    assert parameters(model) == 25_557_032
    kinds = [type(layer) for layer in model.layers]
    assert kinds.count(keras.layers.Conv2D) == 53
    assert kinds.count(keras.layers.BatchNormalization) == 53
    assert kinds.count(keras.layers.Dense) == 1
    for curvature, published in (("full", 1017), ("diagonal", 587)):
        blocks = registry.register_model(
            model, (), {}, {"norm_curvature": curvature, "tied": "pooled"}
        ).blocks
        elements = sum(math.prod(f.shape) for b in blocks for f in b.factors)
        # Whole matrices in float32, once: the inverses take as much again.
        mebibytes = 4 * elements / 2**20
        print(f"{curvature}: {mebibytes:.2f} MiB of factors")
        assert round(mebibytes) == published
    assert_covered(model, blocks=107)


# Steps.


def assert_factors_move(model, x, y):
    """Takes two steps; every factor is new after each."""
    optimizer = tfkfac.KFAC(0.01, damping=0.1, model=model)
    model.compile(optimizer, LOSS, run_eagerly=True)
    weights = [v.numpy() for v in model.trainable_variables]
    before = optimizer.curvature.state()
    names = [name for name in before if name.endswith("/moment")]
    blocks = optimizer.require_attached().layers.registration.blocks
    assert len(names) == sum(len(block.factors) for block in blocks) > 0
    for _ in range(2):
        assert np.isfinite(model.train_on_batch(x, y))
        after = optimizer.curvature.state()
        for name in names:
            assert np.isfinite(after[name]).all(), name
            assert np.abs(after[name] - before[name]).max() > 0, name
        before = after
    for v, old in zip(model.trainable_variables, weights):
        assert np.abs(v.numpy() - old).max() > 0, v.path


def test_factors_of_a_resnet_move():
    model = models.maker("resnet20")((16, 16, 3), 10)
    assert_factors_move(model, images(4, 16), RNG.integers(0, 10, 4))


def test_factors_of_ghost_batches_move():
    model = resnet_cifar((8, 8, 1), 10, depth=8, normalization="ghost")
    assert_factors_move(model, images(64, 8, 1), RNG.integers(0, 10, 64))


def test_factors_of_a_transformer_move():
    tokens = RNG.integers(1, 11, [4, 7])
    assert_factors_move(tiny_transformer(), tokens[:, :-1], tokens[:, 1:])


def test_channels_keep_unit_norm():
    model = resnet_cifar(
        (8, 8, 1), 10, depth=8, normalization="ghost", unit_norm=True
    )
    model.compile("sgd", LOSS, run_eagerly=True)
    model.train_on_batch(images(32, 8, 1), RNG.integers(0, 10, 32))
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            norms = np.linalg.norm(
                layer.kernel.numpy().reshape(-1, layer.filters), axis=0
            )
            np.testing.assert_allclose(norms, 1, rtol=1e-5)


def test_shortcuts_are_identities():
    """With the kernels of all blocks 0, what is left are the shortcuts."""
    model = resnet_cifar((8, 8, 3), 64, depth=8, normalization="none")
    for layer in model.layers:
        if layer.name.startswith("stage"):
            layer.set_weights([np.zeros_like(w) for w in layer.get_weights()])
    model.get_layer("logits").set_weights([np.eye(64), np.zeros(64)])
    x = images(2, 8)
    stem = model.get_layer("stem_convolution")(x).numpy()
    expected = np.zeros([2, 64])
    expected[:, :16] = np.maximum(stem, 0)[:, ::4, ::4].mean(axis=(1, 2))
    np.testing.assert_allclose(model(x), expected, rtol=1e-5, atol=1e-6)


# The Transformer.


def test_a_position_sees_no_later_token():
    model = tiny_transformer()
    tokens = RNG.integers(1, 11, [2, 6])
    changed = tokens.copy()
    changed[:, 4:] = changed[:, 4:] % 10 + 1
    a, b = np.asarray(model(tokens)), np.asarray(model(changed))
    np.testing.assert_allclose(a[:, :4], b[:, :4], rtol=1e-5, atol=1e-6)
    assert np.abs(a[:, 4:] - b[:, 4:]).max() > 1e-3


def test_padding_changes_no_loss():
    model = tiny_transformer(mask_padding=True)
    model.compile(loss=LOSS)
    tokens = RNG.integers(1, 11, [2, 6])
    padded = np.pad(tokens, [(0, 0), (0, 3)])
    whole = model.evaluate(tokens[:, :-1], tokens[:, 1:], verbose=0)
    x, y = padded[:, :-1].copy(), padded[:, 1:]
    x[:, 5:] = 0  # The last token has nothing to predict.
    assert model.evaluate(x, y, verbose=0) == pytest.approx(whole, rel=1e-5)
    tied = model.get_layer("embedding")
    assert len(tied.trainable_variables) == 1


def test_positions():
    x = RNG.normal(size=(2, 5, 6)).astype("float32")
    found = SinusoidalPositions(scale=3.0)(x)
    expected = 3 * x.astype("float64")
    for t in range(5):
        for i in range(3):
            angle = t / 10000 ** (2 * i / 6)
            expected[:, t, 2 * i] += math.sin(angle)
            expected[:, t, 2 * i + 1] += math.cos(angle)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


# Bad input, and what is saved.


def test_errors():
    with pytest.raises(ValueError, match="depth=9"):
        resnet_cifar((8, 8, 1), 10, depth=9)
    with pytest.raises(ValueError, match="normalization='layer'"):
        resnet_cifar((8, 8, 1), 10, depth=8, normalization="layer")
    with pytest.raises(ValueError, match="heads=3"):
        transformer.transformer(11, width=8, heads=3)
    with pytest.raises(ValueError, match="even"):
        SinusoidalPositions()(np.zeros([1, 2, 3]))


@pytest.mark.parametrize("kind", ["ghost", "transformer"])
def test_saved_models_come_back(kind, tmp_path):
    if kind == "ghost":
        model = resnet_cifar(
            (8, 8, 1), 10, depth=8, normalization="ghost", unit_norm=True
        )
        x = images(32, 8, 1)
        model(x, training=True)
    else:
        model = tiny_transformer(mask_padding=True)
        x = RNG.integers(0, 11, [2, 5])
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again(x), model(x))
    own = (GhostBatchNormalization, SinusoidalPositions, MaskLike)
    pairs = [
        (old, new)
        for old, new in zip(model.layers, again.layers)
        if isinstance(old, own)
    ]
    assert pairs
    for old, new in pairs:
        assert type(new) is type(old)
        assert new.get_config() == old.get_config()
