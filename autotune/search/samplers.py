"""The names of the samplers: what can propose the next candidate of a search.

Leaves out how they propose (proposer.py, roofline.py). Each has an option in conf/sampler/.
"""

SAMPLERS = ("roofline", "tpe", "gp", "random", "grid")
