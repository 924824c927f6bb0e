"""Models by name: where they lie, what their configuration says, and what the catalogue knows."""
