"""Models by the name that --model gives them.

Each is a function `(image_shape, classes) -> keras.Model` to logits.
"""

from functools import partial

from trainers.models.simple_cnn import simple_cnn

MODELS = {
    "small_cnn": partial(
        simple_cnn, filters=(16, 32), kernel_size=3, units=64, name="small_cnn"
    ),
}
