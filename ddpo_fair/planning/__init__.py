"""What a config needs and costs, before anything runs."""
