"""Where a run's metrics and images go: metrics.jsonl, TensorBoard, W&B, terminal."""
