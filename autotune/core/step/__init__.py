"""One training step as a trace saw it: its regime, its profile, the work of its operators, and deeper models."""
