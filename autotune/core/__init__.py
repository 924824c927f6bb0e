"""Pure arithmetic on plain dataclasses: no torch, files, clock or global state."""
