"""This machine: what is installed, what NVML says, and the probe that measures it."""
