"""Packaging: dgh_tf and tflite_export with their needs in the ranges that were tried, and extras
for the rest.
"""

import pathlib
import re

from setuptools import find_namespace_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (HERE / "dgh_tf" / "__init__.py").read_text(), re.MULTILINE
).group(1)

# tfds: sources need importlib_resources, which tensorflow-datasets (it comes with keras-cv) does
# not always install. Later releases of tensorflow-metadata need protobuf 6 without telling pip, and
# TensorFlow 2.19 does not take protobuf 6.
BENCHMARKS = [
    "scikit-learn>=1.5",
    "tabulate>=0.9",
    "pycocotools>=2.0.8",
    "pyyaml",
    "importlib_resources",
    "tensorflow-metadata<1.18",
]

LITERT_QUANTIZER = ["litert-quantizer>=0.11,<0.12"]

setup(
    name="dgh-tf",
    version=VERSION,
    description="Calibration images for full-integer TFLite from a trained Keras model and no data",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    python_requires=">=3.11",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["quantization", "calibration", "TFLite", "LiteRT", "Keras", "data-free"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    packages=find_namespace_packages(include=["dgh_tf*", "tflite_export*", "benchmarks*"]),
    package_data={
        "dgh_tf": ["py.typed"],
        "dgh_tf.demo": ["*.keras"],
        "benchmarks.estimate": ["*.json"],
        "benchmarks.suite": ["suite.json"],
        "dgh_tf.report": ["*.html", "*.css", "*.js"],
        "tflite_export": ["py.typed"],
    },
    entry_points={
        "console_scripts": [  # the same as python -m
            "dgh-generate = dgh_tf.generate:command",
            "dgh-quantize = tflite_export.convert:command",
            "dgh-verdict = benchmarks.verdict:command",
        ]
    },
    install_requires=[
        "tensorflow>=2.19,<2.22",  # both ends are tried by SLOW=1 .ci/run
        "tf-keras>=2.19,<2.22",  # of the same version: each release needs its own TensorFlow
        # unpinned, pip may go back to 0.7.3, which cannot work
        "tensorflow-model-optimization>=0.8.1",
        "keras-cv>=0.9",
        "numpy",
        "absl-py<2",  # tensorflow-model-optimization needs 1.x
        "ai-edge-litert>=2.1",
        "filelock",
        "jinja2>=3.1",
        "matplotlib",
        "pillow",
        "tqdm",
    ],
    extras_require={
        "benchmarks": BENCHMARKS,
        "test": [
            *BENCHMARKS,
            "pytest>=8",
            "pytest-xdist>=3.5",
            "hypothesis>=6.100",
            "ruff",
            "mypy>=1.11",
            "types-PyYAML",
            "types-tabulate",
        ],
        "tensorboard": ["tensorboard>=2.16"],
        "vela": ["ethos-u-vela>=5"],
        # TFLM with its reference kernels for this machine; only pre-releases are published
        "tflm": ["tflite-micro"],
        # Google's quantizer of .tflite files, up to 0.10 under the name ai-edge-quantizer; its
        # interface still moves between releases
        "litert-quantizer": LITERT_QUANTIZER,
        "ai-edge": LITERT_QUANTIZER,  # the extra's former name
    },
)
