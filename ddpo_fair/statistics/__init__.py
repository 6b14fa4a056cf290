"""Intervals, bias, diversity and image quality, in NumPy."""
