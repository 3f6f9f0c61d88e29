"""The optimizer: K-FAC as a Keras `Optimizer`."""

import inspect
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf
from absl import logging

from tfkfac import arguments, factor_sizes, inverters, report, settings
from tfkfac.accumulation import MicroStep
from tfkfac.assignable import Assignable
from tfkfac.attached_model import AttachedModel
from tfkfac.capture.distributions import Likelihood
from tfkfac.estimator import state_dtype
from tfkfac.optimizer_state import OptimizerState
from tfkfac.schedules import positive_integer
from tfkfac.state import Curvature
from tfkfac.step import Step, require_few_skips


@keras.saving.register_keras_serializable(package="tfkfac")
class KFAC(OptimizerState, Assignable):
    """Kronecker-factored approximate curvature (Martens and Grosse 2015).

    With V the gradient of a layer, A and G the running averages of the second
    moments of its inputs and of the gradients at its outputs, an update is

        U = A^-1 V G^-1                            (damped; see `inverter`)
        nu = min(1, sqrt(kl_clip / (eta^2 sum <U, V>)))
        m <- mu m - eta nu U,    W <- (1 - eta wd) W + m

    The optimizer must know the model: give it as `model`, or call
    `tfkfac.attach(model)` after `compile` or `load_model`. Variables that no
    curvature block claims are updated as `fallback` says; `summary()` names
    them.

    What is "auto" is chosen, or adapts, by the model, the data and the seed
    alone; what is given stays.

        model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(tfkfac.KFAC(model=model, weight_decay=1e-3), loss)
        model.fit(x, y, batch_size=128, epochs=10)

    "Number or schedule" is a number, or a function from the update (a scalar
    tensor, counted from 0) to a number, such as a `LearningRateSchedule`.

    Args:
        learning_rate: eta, number or schedule.
        damping: lambda > 0, number or schedule; "auto": 0.0001, and 0.000003
            for embeddings, until a number is assigned.
        momentum: mu in [0, 1), number or schedule. Applied to U, not Nesterov.
        factor_decay: rho in [0, 1), number or schedule; 0 takes the factors of
            the last batch alone.
        factor_update_period: Updates from one factor update to the next, number
            or schedule; "auto": a tenth of those so far, from 1 to 10, and no
            fewer than `overhead` allows (1 with refresh="staggered").
        inverse_update_period: Updates from one inversion to the next, likewise;
            "auto" is 50 at most (10 with refresh="staggered").
        refresh: "periodic": all layers are inverted in the same update.
            "staggered": each has its turn, one a period, so that no update
            takes much longer than others. "drift": at the updates of the
            period, those layers of which a factor has moved by more than
            `drift_tolerance` since it was last inverted; it keeps a copy of
            the factors.
        drift_tolerance: The least |new - old| / |old| in the Frobenius norm.
        fisher: "sampled", the Fisher of the model's own prediction, for one
            more backward pass in updates with a factor update; "empirical",
            that of the training loss; or "auto", sampled where the compiled
            loss has a likelihood and was called on what the model returned,
            else empirical, which is said once.
        inverter: "cholesky", factored damping; "eigen", exact damping; or a
            `tfkfac.Inverter`.
        kl_clip: The bound on eta^2 sum <U, V>, number, schedule, or None for
            no bound; "auto": it begins at 0.001 (lower with a momentum above
            0.5) and adapts by the slope of the loss along the last step, until
            a number is assigned.
        norm_curvature: What is kept of the curvature of normalization layers:
            "diagonal"; "unitwise", a 2 x 2 block for each channel; "full".
        norm_damping: The damping of normalization layers, number or schedule;
            None takes `damping`.
        embedding_damping: The damping of embeddings, number or schedule; None
            is what `damping` says; "auto" too, but it can be assigned.
        tied: How the two uses of a tied embedding are added: "pooled" (Zhang
            et al. 2019, A.1) or "balanced", the partial traces of the sum.
        factor_dtype: The type of the factor products; the averages and
            inverses are float32 or wider.
        communication_dtype: The type that the factors' statistics travel in
            between ranks; "float16" halves their bytes.
        strategy: How many ranks hold the inverses of a block, and precondition
            its gradient: "owner", one (Osawa et al. 2019, the least memory);
            "replicated", all (the least communication in steps without a
            refresh); or the size of groups of ranks between. No matter on one
            process.
        likelihood: A `tfkfac.Likelihood`, or one for each output in a list, or
            in a dictionary by the output's name; None takes that of the
            compiled loss, which cross-entropies, KL divergence, Huber's loss,
            and squared, absolute, logarithmic and log-cosh errors have.
        skip: Names or paths of layers to leave to `fallback`.
        max_factor_size: Factors with longer sides keep their diagonal alone;
            None for no bound.
        max_skipped_steps: How many updates in a row may be skipped for a
            gradient that is not finite, before an error.
        seed: Of the sampled targets.
        model: The model; None if it is attached later.
        loss_terms: What a loss term is, of which the loss is the mean: "auto",
            an entry of the unreduced loss where Keras calls a loss whose axes
            are the first of its output's, else an example; "examples"; or
            "positions" of the model's outputs, as tokens.
        fallback: The update of variables without a curvature block: "adam",
            outside the KL clip and `momentum` (decay is eta wd, as elsewhere);
            or "gradient", U = V.
        fallback_learning_rate: That of Adam, number or schedule; None takes
            0.003 eta / max eta, with the largest eta so far.
        overhead: What factors and inversions may add to a step in the mean,
            over the gradient step in FLOPs, where their periods are "auto".
        **kwargs: As of `keras.optimizers.Optimizer`: `weight_decay`,
            `clipnorm`, `use_ema`, `name`, ...

    Raises:
        ValueError: An argument out of its range; the message names it.
        TypeError: An argument that there is not, or of another kind.
    """

    def __init__(
        self,
        learning_rate: float | Callable = 0.1,
        *,
        damping: float | arguments.Auto | Callable = "auto",
        momentum: float | Callable = 0.5,
        factor_decay: float | Callable = 0.95,
        factor_update_period: int | arguments.Auto | Callable = "auto",
        inverse_update_period: int | arguments.Auto | Callable = "auto",
        refresh: arguments.Refresh = "periodic",
        drift_tolerance: float = 0.1,
        fisher: arguments.Fisher = "auto",
        inverter: arguments.InverterName | inverters.Inverter = "cholesky",
        kl_clip: float | arguments.Auto | Callable | None = "auto",
        norm_curvature: arguments.NormCurvature = "diagonal",
        norm_damping: float | Callable | None = None,
        embedding_damping: float | arguments.Auto | Callable | None = None,
        tied: arguments.Tied = "pooled",
        factor_dtype: arguments.FactorType = "float32",
        communication_dtype: arguments.SentType = "float32",
        strategy: arguments.StrategyName | int = "owner",
        likelihood: Likelihood | Sequence | dict | None = None,
        skip: Sequence[str] = (),
        max_factor_size: int | None = factor_sizes.DEFAULT,
        max_skipped_steps: int = 10,
        seed: int = 0,
        model: keras.Model | None = None,
        loss_terms: arguments.LossTerms = "auto",
        fallback: arguments.Fallback = "adam",
        fallback_learning_rate: float | Callable | None = None,
        overhead: float = 0.3,
        name: str = "kfac",
        **kwargs,
    ):
        settings.check_given_to_keras(learning_rate, kwargs, _OWN)
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        settings.check_keras_numbers(self)
        self._choices = {
            "refresh": refresh,
            "fisher": fisher,
            "loss_terms": loss_terms,
            "norm_curvature": norm_curvature,
            "tied": tied,
            "factor_dtype": factor_dtype,
            "communication_dtype": communication_dtype,
            "fallback": fallback,
        }
        settings.check(
            self._choices,
            strategy=strategy,
            likelihood=likelihood,
            skip=skip,
            max_factor_size=max_factor_size,
            drift_tolerance=drift_tolerance,
        )
        settings.check_refresh(refresh, inverse_update_period)
        settings.check_overhead(overhead)
        settings.check_fallback(fallback, fallback_learning_rate)
        self.fisher, self.factor_dtype = fisher, factor_dtype
        self.loss_terms, self.fallback = loss_terms, fallback
        self.strategy, self.communication_dtype = strategy, communication_dtype
        self.refresh, self.drift_tolerance = refresh, drift_tolerance
        self.block_options = {"norm_curvature": norm_curvature, "tied": tied}
        self.max_factor_size = max_factor_size and int(max_factor_size)
        self.overhead = overhead
        self.inverter = inverters.get(inverter)
        self._inverter_argument = inverter
        self.likelihood = likelihood
        self.skip = tuple(skip)
        self.max_skipped_steps = positive_integer(
            "max_skipped_steps", max_skipped_steps, least=0
        )
        self.seed = positive_integer("seed", seed, least=0)
        self.hyperparameters = settings.hyperparameters(
            self.add_variable,
            damping=damping,
            momentum=momentum,
            factor_decay=factor_decay,
            kl_clip=kl_clip,
            norm_damping=norm_damping,
            embedding_damping=embedding_damping,
            fallback_learning_rate=fallback_learning_rate,
        )
        self.periods = settings.periods(
            self.add_variable,
            refresh=refresh,
            overhead=overhead,
            factor_update_period=factor_update_period,
            inverse_update_period=inverse_update_period,
        )
        if self.gradient_accumulation_steps:
            self.window_is_finite = self.add_variable(
                shape=(), initializer="ones", dtype="bool", name="finite"
            )
            self.window_divisor = self.add_variable(
                shape=(), initializer="zeros", name="accumulated_divisor"
            )
            self.window_examples = self._add_counter("accumulated_examples")
        self.skip_counter = self._add_counter("skipped_steps")
        self.skips_in_a_row = self._add_counter("skipped_in_a_row")
        self.curvature = Curvature(name)
        self._attached: AttachedModel | None = None
        self._lists_curvature = None
        if model is not None:
            self._attach(model)

    def _add_counter(self, name: str) -> keras.Variable:
        return self.add_variable(
            shape=(), initializer="zeros", dtype="int64", name=name
        )

    # The model.

    def _attach(self, model: keras.Model) -> None:
        arguments.check_model(model)
        attached = self._attached
        if attached is not None and attached.model is not model:
            raise ValueError(
                f"This KFAC is attached to the model {attached.model.name!r} "
                f"already and cannot take {model.name!r} too: make one "
                "optimizer for each model."
            )
        if attached is not None and not attached.recorder.retired:
            logging.warning("KFAC is attached to %r already.", model.name)
            return
        attached = self._attached = AttachedModel(self, model)
        if attached.is_built and not self.built:
            # Variables made in the first step would have it traced twice.
            self.build(model.trainable_variables)

    def require_attached(self) -> AttachedModel:
        """Returns what joins it and the model; RuntimeError without one."""
        if self._attached is None:
            raise RuntimeError(
                "KFAC has no model: pass KFAC(model=model, ...), or call "
                "tfkfac.attach(model) after model.compile or "
                "keras.models.load_model."
            )
        if self._attached.recorder.retired:
            raise RuntimeError(
                f"The model {self._attached.model.name!r} has been attached to "
                "another KFAC since: compile it with that one."
            )
        return self._attached

    def summary(self, print_fn: Callable[[str], None] = print) -> None:
        """Prints which block each layer has, and what has none."""
        attached = self.require_attached()
        if attached.is_built:
            attached.register()
        layers = attached.layers
        table = report.table(
            attached.model,
            layers.registration,
            self.curvature,
            tf.as_dtype(self.factor_dtype),
            layers.fallback.name,
            attached.remark,
        )
        print_fn(table)

    # An update.

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        with tf.init_scope():
            self.momenta = [
                self.add_variable(
                    shape=v.shape,
                    initializer="zeros",
                    dtype=state_dtype(v).name,
                    name=f"{v.path.replace('/', '_')}_momentum",
                )
                for v in variables
            ]

    @tf.autograph.experimental.do_not_convert
    def apply(self, grads, trainable_variables=None):
        """As Keras' `apply`; a skipped step applies no constraints either."""
        grads = list(grads)
        if not grads:
            return
        if trainable_variables is None:
            if not self.built:
                raise ValueError(
                    "KFAC.apply(grads) without variables needs "
                    "optimizer.build(trainable_variables) first."
                )
            trainable_variables = self._trainable_variables
        variables = list(trainable_variables)
        if len(grads) != len(variables):
            raise ValueError(
                f"KFAC.apply was given {len(grads)} gradients for "
                f"{len(variables)} variables."
            )
        settings.check_replicas()
        settings.check_keras_numbers(self)  # They may have been assigned.
        self.require_attached().require_own(variables)
        known = self._trainable_variables_indices
        if self.built and any(self._var_key(v) not in known for v in variables):
            self._forget_unused_build()
        if not self.built:
            self.build(variables)
        self._check_variables_are_known(variables)
        self.curvature.require_of(lambda: self.updates)
        before = self.updates
        with tf.name_scope(self.name):
            grads, variables = self._filter_empty_gradients(grads, variables)
            if self.loss_scale_factor is not None:
                scale = self.loss_scale_factor  # Of embeddings, too.
                grads = [tf.convert_to_tensor(g) / scale for g in grads]
            made = self._backend_apply_gradients(grads, variables)
        with tf.control_dependencies([made]):  # What fails does not count.
            self._iterations.assign_add(1)
            self.curvature.advance(before, self.updates)
            require_few_skips(self)

    def _backend_apply_gradients(self, grads, trainable_variables):
        kind = MicroStep if self.gradient_accumulation_steps else Step
        return kind(self, grads, trainable_variables).run()


_OWN = tuple(inspect.signature(KFAC.__init__).parameters)
