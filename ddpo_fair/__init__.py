"""Reinforcement learning for fair image generation, in JAX."""

__version__ = "0.1.0"
