"""The networks; modules are named by the paths of the official safetensors files."""
