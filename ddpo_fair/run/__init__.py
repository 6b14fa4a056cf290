"""A run: its parts put together, epoch after epoch, and what keeps it safe."""
