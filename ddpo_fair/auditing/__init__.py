"""Audit of a folder of images, of any generator."""
