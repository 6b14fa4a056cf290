"""What a config may say, and how a command line changes it."""
