"""`gpu_suite.py memory`: what is predicted of a GPU's memory against what real trainings take of it."""

from benchmarks.gpu.cases import CARDS, CASES
from benchmarks.gpu.measure import Part
from benchmarks.gpu.summary import summary

STEPS = 2  # measured ones: a trial has no rate from fewer
MEMORY = Part(file="gpu_memory.jsonl", cases=CASES, cards=CARDS, steps=STEPS, shown="allocated_bytes", summary=summary)
