"""Bias evaluation: the classifier, the rewards, the advantages."""
