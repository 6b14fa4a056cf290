"""Training and testing of image classifiers on labelled pictures."""
