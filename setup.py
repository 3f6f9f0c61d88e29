"""Packaging of tfkfac. The command line of set-up is the Makefile's."""

import pathlib

from setuptools import find_packages, setup

TENSORFLOW = "2.21.*"
EXTRAS = {
    "cpu": [f"tensorflow-cpu=={TENSORFLOW}"],
    "gpu": [f"tensorflow[and-cuda]=={TENSORFLOW}"],
    "horovod": ["horovod==0.28.1", "cloudpickle", "psutil", "pyyaml", "cffi"],
    "data": [
        "tensorflow-datasets>=4.9.10,<5",
        "importlib_resources",
        "scikit-learn>=1.7,<2",
    ],
    "text": ["sentencepiece>=0.2.1,<0.3"],
    "plot": ["matplotlib>=3.10,<4"],
    "tensorboard": ["tensorboard>=2.20,<3"],
    "benchmark": ["mlxtend>=0.24,<1", "statsmodels>=0.14,<1"],
    "studies": ["scipy>=1.15,<2", "threadpoolctl>=3.5,<4"],
    "test": ["hypothesis>=6.150,<7", "pytest>=9,<10", "pytest-xdist>=3.8,<4"],
}

setup(
    name="tfkfac",
    version="0.1.0",
    description="K-FAC for Keras 3 on TensorFlow",
    long_description=pathlib.Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["tfkfac*", "trainers*", "tools*"]),
    install_requires=["absl-py>=2.1", "keras==3.15.*", "numpy>=2"],
    extras_require=EXTRAS,
)
