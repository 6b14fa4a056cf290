"""Image generation: DDIM as a policy, the text-to-image model, the sampler."""
