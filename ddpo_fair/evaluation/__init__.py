"""A model before and after fine-tuning: many prompts, several samplers."""
