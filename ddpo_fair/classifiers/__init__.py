"""Attribute classifiers: model, data, training, testing; the audit classifier."""
