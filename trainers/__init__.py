"""Programs that train the models of the papers: `python -m trainers.mnist`."""

import os

# TensorFlow's notes on its build are not news to who trains a model.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
