"""Which candidates there are: legality, fidelity, what the user fixed, and the list of all."""
