"""A run: its parts, its loop, its folder, its checkpoints, what may go wrong."""
