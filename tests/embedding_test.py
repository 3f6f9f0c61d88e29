"""Embeddings, against K-FAC in float64 NumPy."""

import numpy as np
import pytest
from keras import layers, ops
from oracle import ONE_UPDATE, Case, Projection, cross_entropy

import tfkfac
from tfkfac.auto_damping import DAMPING, OF_EMBEDDINGS

VOCABULARY = 7  # the last token never comes
inverters = pytest.mark.parametrize("inverter", ["cholesky", "eigen"])
ignore_lost_masks = pytest.mark.filterwarnings(
    "ignore:.*does not support mask.*"
)


def tokens(stack, labels=3, positions=5, batch=4, steps=1, **arguments):
    """A case with a label for each token that the stack puts out.

    Token 0 comes often, and in each example a different number of times.
    """
    rng = np.random.default_rng(0)
    count = batch * steps
    x = rng.integers(1, VOCABULARY - 1, size=(count, 5))
    for i in range(count):
        x[i, 5 - i % 4 :] = 0
    options = ONE_UPDATE | arguments.pop("options", {})
    return Case(
        stack,
        x=x,
        y=rng.integers(0, labels, size=(count, positions)),
        weights=rng.uniform(0.5, 2, size=(count, positions)),
        batch=batch,
        loss=cross_entropy(),
        options=options,
        **arguments,
    )


def classified(stack, **arguments):
    """A case with a label for each example."""
    case = tokens(stack, positions=1, **arguments)
    case.y, case.weights = case.y[:, 0], case.weights[:, 0]
    return case


def embedding(**arguments):
    return layers.Embedding(VOCABULARY, 4, **arguments)


@inverters
def test_labels_of_examples(float64, inverter):
    """Counts of repeated tokens are sums of rows: A_v = count_v / N."""
    stack = [embedding(), layers.GlobalAveragePooling1D(), layers.Dense(3)]
    case = classified(stack, options={"inverter": inverter})
    assert max(case.run()) < 1e-9


@inverters
@pytest.mark.parametrize("mask_zero", [False, True])
def test_labels_of_tokens(float64, inverter, mask_zero):
    """N and R are the numbers of tokens that are not masked."""
    stack = [embedding(mask_zero=mask_zero), layers.Dense(3)]
    case = tokens(stack, options={"inverter": inverter})
    assert max(case.run()) < 1e-9


@inverters
@ignore_lost_masks
def test_masked_tokens_that_count_in_the_loss(float64, inverter):
    """Flatten drops the mask: V takes masked rows in, A and G do not."""
    stack = [embedding(mask_zero=True), layers.Flatten(), layers.Dense(3)]
    case = classified(stack, options={"inverter": inverter})
    assert max(case.run()) < 1e-9


@inverters
def test_several_updates(float64, inverter):
    """Three updates with running averages and momentum, in graph mode."""
    stack = [embedding(mask_zero=True), layers.Dense(4, activation="tanh")]
    options = {"momentum": 0.9, "inverter": inverter}
    case = tokens(
        [*stack, layers.Dense(3)], steps=3, options=options, run_eagerly=False
    )
    assert max(case.run()) < 1e-9


def test_ids_of_one_axis(float64):
    """An example may be one id; the output factor may be a number."""
    stack = [layers.Embedding(VOCABULARY, 1), layers.Dense(3)]
    case = classified(stack)
    case.x = case.x[:, 0]
    assert max(case.run()) < 1e-9


def test_sampled(float64):
    """The sampled Fisher, with given targets."""
    stack = [embedding(), layers.Dense(3)]
    samples = np.random.default_rng(1).integers(0, 3, size=20)
    case = tokens(stack, samples=samples, likelihood=tfkfac.Categorical)
    assert max(case.run()) < 1e-9


def test_float32():
    """float32 keeps 1e-5 where the damped factors are well conditioned."""
    stack = [embedding(mask_zero=True), layers.Dense(3)]
    case = tokens(stack, options={"damping": 1.0})
    assert max(case.run()) < 1e-5
    assert case.condition() <= 100


def tied(between=(), inverter="cholesky", how="pooled", **arguments):
    """A case of a tied embedding, a dense layer, and the projection."""
    names = ("mask_zero", "logit_soft_cap")
    own = {name: arguments.pop(name) for name in names if name in arguments}
    layer = layers.ReversibleEmbedding(VOCABULARY, 4, **own)
    hidden = layers.Dense(4, activation="tanh")
    options = arguments.pop("options", {}) | {"inverter": inverter}
    return tokens(
        [layer, *between, hidden, Projection(layer)],
        labels=VOCABULARY,
        options=options,
        keras_options={"tied": how},
        **arguments,
    )


ways = pytest.mark.parametrize("how", ["pooled", "balanced"])
caps = pytest.mark.parametrize("cap", [None, 1.5])


@inverters
@ways
@caps
@pytest.mark.parametrize("mask_zero", [False, True])
def test_tied(float64, inverter, how, cap, mask_zero):
    """The roles of the factors swap at the projection (Zhang, A.1)."""
    case = tied(
        inverter=inverter, how=how, logit_soft_cap=cap, mask_zero=mask_zero
    )
    assert max(case.run()) < 1e-9


@inverters
@ways
def test_tied_with_fewer_projections(float64, inverter, how):
    """R_in and R_out differ where some positions have no logits."""
    between = [layers.Cropping1D((2, 1))]
    case = tied(between, inverter, how, positions=2)
    assert max(case.run()) < 1e-9


@ignore_lost_masks
@ways
def test_tied_with_masked_lookups_only(float64, how):
    """The projection's rows are all there where its inputs have no mask."""
    between = [layers.Cropping1D((1, 1))]
    case = tied(between, how=how, positions=3, mask_zero=True)
    assert max(case.run()) < 1e-9


@inverters
@ways
def test_tied_for_several_updates(float64, inverter, how):
    """Three updates with running averages and momentum, in graph mode."""
    case = tied(
        inverter=inverter,
        how=how,
        steps=3,
        options={"momentum": 0.9},
        logit_soft_cap=2.0,
        run_eagerly=False,
    )
    assert max(case.run()) < 1e-9


@ways
def test_tied_sampled(float64, how):
    """The sampled Fisher, with given targets."""
    samples = np.random.default_rng(1).integers(0, VOCABULARY, size=20)
    case = tied(how=how, samples=samples, likelihood=tfkfac.Categorical)
    assert max(case.run()) < 1e-9


@ways
def test_tied_float32(how):
    """float32 keeps 1e-5 where the damped factors are well conditioned."""
    case = tied(how=how, mask_zero=True, options={"damping": 1.0})
    assert max(case.run()) < 1e-5
    assert case.condition() <= 100


# Its damping.


def damped(damping, **options):
    """Three updates of an embedding and two layers, of which two invert.

    Args:
        damping: What `KFAC` is given of "damping" and "embedding_damping".
        **options: As of `Case`.
    """
    stack = [embedding(), layers.Dense(4), layers.Dense(3)]
    case = tokens(
        stack,
        steps=3,
        options={"inverse_update_period": 2, **options},
        run_eagerly=False,
    )
    case.options.pop("damping")
    case.keras_options = damping
    return case


@inverters
@pytest.mark.parametrize("given", [{}, {"damping": "auto"}])
def test_no_damping_is_given(float64, inverter, given):
    case = damped(given, inverter=inverter)
    case.mirror_options = {
        "damping": DAMPING,
        "embedding_damping": OF_EMBEDDINGS,
    }
    assert max(case.run()) < 1e-7


@inverters
@pytest.mark.parametrize(
    "given",
    [
        {"damping": 0.3},
        {"damping": 0.3, "embedding_damping": 0.02},
        {"embedding_damping": 0.02},
    ],
)
def test_damping_of_its_own(float64, inverter, given):
    case = damped(given, inverter=inverter)
    case.mirror_options = {"damping": DAMPING, **given}
    assert max(case.run()) < 1e-7


def test_schedule_of_the_damping(float64):
    """It is frozen at the inversions, as the damping is."""
    case = damped(
        {"embedding_damping": lambda t: 0.5 / (1 + ops.cast(t, float))}
    )
    case.mirror_options = {
        "damping": DAMPING,
        "embedding_damping": lambda t: 0.5 / (1 + t),
    }
    assert max(case.run()) < 1e-7


def test_damping_of_a_tied_embedding(float64):
    case = tied()
    case.keras_options["embedding_damping"] = 0.02
    case.mirror_options["embedding_damping"] = 0.02
    assert max(case.run()) < 1e-9
