"""autotune: the fastest safe supervised fine-tuning configuration for one model, one dataset and one machine."""

__version__ = "0.1.0"
