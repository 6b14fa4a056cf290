"""Where weights come from: the package, a folder, or the Hugging Face hub."""
