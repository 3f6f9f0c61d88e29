"""FLOPs of products: by hand, and by TensorFlow's profiler."""

import keras
import pytest
import tensorflow as tf
from keras import layers
from planned_models import TOKENS, convolutional, dense, tokens

import tfkfac
from tfkfac.planning import flops
from tfkfac.tracing import rarely
from tools import image_models


def test_flops_by_hand():
    """Two dense layers; of the first no gradient goes on to its inputs."""
    planned = tfkfac.plan(dense(), batch_size=8)
    first, second = planned.layers
    assert first.gradient_flops == 2 * (2 * 8 * 5 * 4)
    assert second.gradient_flops == 3 * (2 * 8 * 4 * 3)
    gradient = first.gradient_flops + second.gradient_flops
    assert planned.step("gradient").flops == gradient
    assert planned.sampled_flops == 2 * 8 * 4 * 3
    assert first.factor_flops == 2 * 8 * (5**2 + 4**2)
    assert second.factor_flops == 2 * 8 * (4**2 + 3**2)
    # A bias adds a row to V, and to A.
    assert first.inversion_flops == 2 * (6**3 + 4**3)
    assert first.preconditioning_flops == 2 * 6 * 4 * (6 + 4)
    assert second.preconditioning_flops == 2 * 4 * 3 * (4 + 3)
    plain = gradient + 2 * 6 * 4 * (6 + 4) + 2 * 4 * 3 * (4 + 3)
    assert planned.step("plain").flops == plain
    factors = plain + first.factor_flops + second.factor_flops + 2 * 8 * 4 * 3
    assert planned.step("factors").flops == factors
    inversions = first.inversion_flops + second.inversion_flops
    assert planned.step("factors and inverses").flops == factors + inversions
    mean = (factors - plain) / 2 + inversions / 6 + plain - gradient
    found = tfkfac.plan(
        dense(), batch_size=8, factor_update_period=2, inverse_update_period=6
    )
    assert found.overhead == pytest.approx(mean / gradient, rel=1e-12)
    empirical = tfkfac.plan(dense(), batch_size=8, fisher="empirical")
    expected = factors - planned.sampled_flops
    assert empirical.step("factors").flops == expected


def test_flops_of_convolutions_and_attention_by_hand():
    found = {x.path: x for x in tfkfac.plan(convolutional()).layers}
    wide, grouped = found["wide"], found["grouped"]
    batch = 32
    assert wide.gradient_flops == 2 * (2 * batch * 8 * 8 * 9 * 2 * 4)
    # Depthwise, with a kernel for each of 4 channels, then 4 to 6 channels.
    depthwise = found["separable_conv2d/depthwise"]
    assert depthwise.gradient_flops == 3 * (2 * batch * 6 * 6 * 9 * 4)
    pointwise = found["separable_conv2d/pointwise"]
    assert pointwise.gradient_flops == 3 * (2 * batch * 6 * 6 * 4 * 6)
    rows = batch * 6 * 6
    assert pointwise.factor_flops == 2 * rows * (4**2 + 6**2)
    # Two groups, from 3 channels to 2 each.
    assert grouped.gradient_flops == 3 * (2 * rows * 2 * 3 * 2)
    assert grouped.factor_flops == 2 * rows * 2 * (3**2 + 2**2)
    # The input's autocorrelation: 15 of the 25 offsets stand for all; what
    # is taken off at the borders is less than as much again.
    A = wide.factor_flops - 2 * batch * 8 * 8 * 4**2
    inner = 2 * batch * 8 * 8 * 15 * 2**2
    assert inner < A < 2 * inner < 2 * batch * 8 * 8 * 18**2

    planned = tfkfac.plan(tokens(), batch_size=5, inputs=TOKENS)
    rest = planned.step("gradient").flops
    rest -= sum(x.gradient_flops for x in planned.layers)
    # Two products, of 2 heads, 6 by 6 positions, width 4, forward and back.
    assert rest == 3 * 2 * (2 * 5 * 2 * 6 * 6 * 4)
    projection = planned.layers[0]
    assert projection.gradient_flops == 3 * (2 * 5 * 6 * 8 * 200)


def test_flops_are_those_of_tensorflow():
    """The gradient step of ResNet-20, against TensorFlow's profiler."""
    model = image_models.build_model("resnet20")[0]

    @tf.function
    def gradients(x):
        with tf.GradientTape() as tape:
            y = model(x, training=True)
        variables = [v.value for v in model.trainable_variables]
        return tape.gradient(y, variables)

    graph = gradients.get_concrete_function(tf.TensorSpec([4, 32, 32, 3])).graph
    builder = tf.compat.v1.profiler.ProfileOptionBuilder
    options = (
        builder(builder.float_operation())
        .with_accounted_types([".*Conv2D.*", ".*MatMul.*"])
        .with_empty_output()
        .build()
    )
    expected = tf.compat.v1.profiler.profile(graph, options=options)
    planned = tfkfac.plan(model, batch_size=4)
    # The graph has a gradient with respect to the images, which is not run.
    unused = 2 * 4 * 32 * 32 * 9 * 3 * 16
    found = planned.step("gradient").flops
    assert found == expected.total_float_ops - unused
    assert sum(x.gradient_flops for x in planned.layers) == found


def test_flops_of_a_batch_in_parts():
    """Of four times the batch, of which a part is taken at a time."""
    model = keras.Sequential(
        [keras.Input((32, 32, 64)), layers.Conv2D(2, 3, padding="same")]
    )
    few, many = (tfkfac.plan(model, batch_size=n) for n in (32, 128))
    assert not many.uncounted
    found = many.layers[0].factor_flops / few.layers[0].factor_flops
    assert found == pytest.approx(4, rel=0.01)


def counted(function, *shapes):
    specs = [tf.TensorSpec(s) for s in shapes]
    graph = tf.function(function, autograph=False).get_concrete_function(*specs)
    return flops.count(graph.graph.get_operations())


def test_products_by_hand():
    """2 m n k, whatever is transposed; sums and one operand count nothing."""
    expected = 2 * 3 * 4 * 5
    product = {
        (False, False): ([3, 4], [4, 5]), (True, False): ([4, 3], [4, 5]),
        (False, True): ([3, 4], [5, 4]), (True, True): ([4, 3], [5, 4]),
    }  # fmt: skip
    for (a, b), shapes in product.items():

        def multiply(x, y, a=a, b=b):
            return tf.matmul(x, y, transpose_a=a, transpose_b=b) + 1

        assert counted(multiply, *shapes) == (expected, [])
        batched = [[7, *shape] for shape in shapes]
        assert counted(multiply, *batched) == (7 * expected, [])
    equations = {
        "ij,jk->ik": ([3, 4], [4, 5]),
        "...ij,...kj->...ik": ([3, 4], [5, 4]),
        "ij->ji": ([3, 4],),
    }
    for equation, shapes in equations.items():
        found = counted(lambda *xs, e=equation: tf.einsum(e, *xs), *shapes)
        assert found == (expected if len(shapes) > 1 else 0, [])


def test_loops_count_where_their_length_is_known():
    def loop(x, **options):
        return tf.while_loop(
            lambda i, y: i < 3, lambda i, y: (i + 1, y @ y), [0, x], **options
        )[1]

    once = 2 * 4 * 4 * 4
    found, names = counted(lambda x: loop(x, maximum_iterations=3), [4, 4])
    assert found == 3 * once and not names
    found, names = counted(loop, [4, 4])
    assert not found and len(names) == 1 and "while" in names[0]


def test_sides_that_are_open_are_left_out():
    found, names = counted(lambda x, y: tf.matmul(x, y), [None, 4], [4, 5])
    assert not found and names == ["MatMul"]


def test_branches_that_are_rarely_taken_count_nothing():
    def square(x):
        return rarely(x[0, 0] > 0, lambda: x @ x, x)

    assert counted(square, [4, 4]) == (0, [])
    found, names = counted(
        lambda x: tf.cond(x[0, 0] > 0, lambda: x @ x, lambda: x), [4, 4]
    )
    assert not found and names == ["cond"]
