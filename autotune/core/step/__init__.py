"""One training step as a trace saw it: regimes, profiles, operators' work, and more layers than were traced."""
