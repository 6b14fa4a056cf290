"""The objectives (PPO, Truly PPO) and the jitted update."""
