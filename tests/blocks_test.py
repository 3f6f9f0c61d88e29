"""One update of layers on rows, against K-FAC in float64 NumPy."""

import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from oracle import ONE_UPDATE, Case, cross_entropy, single

import tfkfac


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("activation", ["tanh", "relu", None])
def test_dense(float64, use_bias, activation):
    """Dense layers with and without bias and activation."""
    layer = layers.Dense(4, use_bias=use_bias, activation=activation)
    assert max(single(layer, (5,), batch=6).run()) < 1e-9


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4)])
def test_dense_on_positions(float64, shape):
    """A label an example: A sums over positions, G is their mean."""
    layer = layers.Dense(4, activation="tanh")
    assert max(single(layer, shape, batch=4).run()) < 1e-9


def tokens(stack, steps, **arguments):
    """A case with a label at each of `steps` positions, weights [B, T]."""
    rng = np.random.default_rng(0)
    arguments = {"weights": rng.uniform(0, 2, size=(4, steps))} | arguments
    return Case(
        stack,
        x=rng.normal(size=(4, steps, 5)),
        y=rng.integers(0, 3, size=(4, steps)),
        loss=cross_entropy(),
        options=ONE_UPDATE,
        **arguments,
    )


def test_a_label_for_each_token(float64):
    """N counts tokens: A is their mean too."""
    case = tokens([layers.Dense(4, activation="tanh"), layers.Dense(3)], 3)
    assert max(case.run()) < 1e-9


def test_weights_of_examples_with_labels_of_tokens(float64):
    """A weight for an example counts for each of its tokens."""
    weights = np.array([[0.5], [2.0], [0.0], [1.0]])
    stack = [layers.Dense(4, activation="tanh"), layers.Dense(3)]
    assert max(tokens(stack, 3, weights=weights).run()) < 1e-9


def masked(case):
    """Sets steps of a case to 0, so that `Masking` masks them."""
    case.x[0, 2:] = 0
    case.x[2, :] = 0
    case.x[3, 1] = 0
    case.layers.insert(0, layers.Masking())
    return case


@pytest.mark.parametrize(
    "weights", [None, np.array([[0.5], [2.0], [1.0], [3.0]])]
)
def test_masked_tokens(float64, weights):
    """Masked rows count neither in A and G nor in N and R."""
    stack = [layers.Dense(4, activation="tanh"), layers.Dense(3)]
    case = masked(tokens(stack, 4, weights=weights))
    assert max(case.run()) < 1e-9


@pytest.mark.filterwarnings("ignore:.*does not support mask.*")
def test_masked_rows_below_labels_of_examples(float64):
    """N is the number of examples; the layer's masked rows are left out."""
    case = masked(single(layers.Dense(4, activation="tanh"), (3, 5), batch=4))
    assert max(case.run()) < 1e-9


# Equation, shape of the input, output shape, bias axes. (Keras 3.15 adds a bias
# that is not last to axis 1 where the sizes agree: none of these do.)
EQUATIONS = [
    ("ab,bc->ac", (4,), 3, None),
    ("ab,bc->ac", (4,), 3, "c"),
    ("abc,cd->abd", (3, 4), (3, 2), None),
    ("abc,cd->abd", (3, 4), (3, 2), "d"),
    ("abc,cd->abd", (3, 4), (3, 2), "bd"),
    ("abc,cd->adb", (3, 4), (2, 3), "d"),
    ("abc,dc->abd", (3, 4), (3, 2), "d"),
    ("abc,cde->abde", (3, 4), (3, 2, 3), None),
    ("abc,cde->abde", (3, 4), (3, 2, 3), "de"),
    ("abc,cde->abde", (3, 4), (3, 2, 3), "e"),
    ("abc,cde->abde", (3, 4), (3, 2, 3), "d"),
    ("abc,cde->abde", (3, 4), (3, 2, 3), "bde"),
    ("abc,cde->abed", (3, 4), (3, 3, 2), "de"),
    ("abc,dec->abde", (3, 4), (3, 2, 3), "de"),
    ("abc,dce->adbe", (3, 4), (2, 3, 3), "de"),
    ("abcd,cde->abe", (2, 3, 2), (2, 4), None),
    ("abcd,cde->abe", (2, 3, 2), (2, 4), "e"),
    ("abdc,cde->abe", (2, 3, 2), (2, 4), "e"),
    ("abcd,dbe->ace", (2, 3, 2), (3, 4), "e"),
    ("abcd,decf->abfe", (2, 3, 2), (2, 3, 4), "ef"),
    ("abc,cd->ad", (3, 4), 2, "d"),
    ("abc,bcd->ad", (3, 4), 2, "d"),
    ("...x,xy->...y", (4,), 3, "y"),
    ("...x,xy->...y", (3, 4), 2, "y"),
    ("...x,xy->...y", (2, 3, 4), 2, None),
    ("...xy,yz->...xz", (2, 3, 4), (3, 2), "z"),
    ("...xy,yz->...zx", (4, 3, 2), (5, 3), "z"),
    ("...xy,yz->...xz", (2, 3, 4), (3, 2), "xz"),
    ("ab...,bc->ac...", (4, 2, 3), (2,), None),
    ("ab...,bc->ac...", (4, 2, 3), (2,), "c"),
]


@pytest.mark.parametrize("equation, shape, output, bias_axes", EQUATIONS)
def test_einsum_dense(float64, equation, shape, output, bias_axes):
    """Kernel axes in kernel order; a bias elsewhere takes its gradient."""
    layer = layers.EinsumDense(
        equation, output_shape=output, bias_axes=bias_axes, activation="tanh"
    )
    assert max(single(layer, shape, batch=3).run()) < 1e-9


def test_shared_dense(float64):
    """The rows of a layer called twice are those of both its uses."""
    case = single(layers.Dense(5, activation="tanh"), (5,), batch=4)
    case.layers.insert(1, case.layers[0])
    assert max(case.run()) < 1e-9


def test_shared_at_two_ranks(float64):
    """Positions and examples are rows alike."""
    layer = layers.Dense(4, activation="tanh")
    case = single(layer, (3, 4), batch=3)
    case.layers = [layer, layers.Flatten(), layers.Dense(4), layer]
    case.layers.append(layers.Dense(3))
    assert max(case.run()) < 1e-9


def test_a_block_without_rows_says_what_it_lacks():
    class Own(tfkfac.KroneckerBlock):
        def output_rows(self, outputs):
            return outputs[tf.newaxis]

    layer = layers.Dense(2)
    layer.build((None, 3))
    block = Own(layer, layer.kernel, None, d_in=3, d_out=2)
    with pytest.raises(NotImplementedError, match="Own needs `input_rows`"):
        block.input_rows(tf.ones([1, 3]))
