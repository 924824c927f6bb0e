"""Predicted against real peaks of evaluating, saving and loading on the CPU: torch's own allocation events.

    python -m benchmarks.memory.phases_cpu --home DIR [--count 24] [--out FILE] [--json]

Cases are those of truth_cpu.py, with TRL's fused head. Each trains its steps. Then the same trainer saves, and
evaluates micro-batches like those that it trained. The peak of loading is the most that lives until the trainer stands.
Each row has a process of its own, under the profiler from before the first weight.
"""

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from autotune.core.memory.estimate import demand_of
from autotune.core.memory.law import memory_law
from autotune.core.step.deepening import deepen
from autotune.core.workload import ModelFacts
from benchmarks.command import Answer, add_out, command, say
from benchmarks.machines import plain_cpu
from benchmarks.memory.cases import ARCHITECTURES, Case, draw_cases, find_model
from benchmarks.memory.truth_cpu import last_bytes, most_bytes, predicted_and_measured, request_and_batch, trained
from benchmarks.rows import RESULTS, RowFile, errors, versions

PHASES = ("evaluation", "saving", "loading")
SINCE = 10  # the format of profiles since which a block's last use is noted as it is now
JOBS = 2


def options(parser: argparse.ArgumentParser) -> None:
    """Say where models are kept, and how many cases there are."""
    parser.add_argument("--home", type=Path, required=True, help="directory in which models are made and kept")
    parser.add_argument("--count", type=int, default=24, help="cases")
    parser.add_argument("--seed", type=int, default=0)
    add_out(parser, RESULTS / "memory_phases_cpu.jsonl")


def answer(arguments: argparse.Namespace) -> Answer:
    """Predict and measure the cases that have no row yet; return all rows of these versions, and their errors."""
    facts = [find_model(name, arguments.home) for name in ("tiny", *ARCHITECTURES)]
    file = RowFile(path=arguments.out, about={"format": SINCE, "versions": versions()})
    done = [row["case"] for row in file.own()]
    drawn = draw_cases(facts, plain_cpu(), count=arguments.count, seed=arguments.seed)
    waiting = [case for case in (replace(each, loss="fused") for each in drawn) if case.key not in done]
    for case, predicted, measured in predicted_and_measured(waiting, facts, (predict, measure), JOBS):
        off = {phase: predicted[phase] / measured[phase] - 1 for phase in PHASES}
        file.add({"case": case.key, "name": case.name, "predicted": predicted, "measured": measured, "errors": off})
        say("  ".join([*(f"{phase} {off[phase]:+7.2%}" for phase in PHASES), case.name]))
    rows = file.own()
    return {"rows": rows, **{phase: errors([row["errors"][phase] for row in rows]) for phase in PHASES}}


def predict(case: Case, facts: ModelFacts) -> dict[str, int]:
    """Return the peaks of the phases as an estimate predicts them, in bytes."""
    from autotune.trace.trace import trace

    request, batch = request_and_batch(case, facts)
    profile = trace(request)
    law = memory_law(profile, layers=facts.layers, accumulation=case.candidate.gradient_accumulation_steps)
    whole = deepen(profile, facts.layers)
    phases = demand_of(whole, law, None, candidate=case.candidate, batch=batch).phases
    return {phase: phases[phase] for phase in PHASES}


def measure(case: Case, facts: ModelFacts) -> dict[str, int]:
    """Return the real peaks in bytes: live ones, and those of weights that are mapped from their file."""
    from torch.autograd.profiler import profile

    with trained(case, facts) as found, tempfile.TemporaryDirectory() as scratch:
        trainer = found.trainer
        trainer.args.per_device_eval_batch_size = case.candidate.per_device_train_batch_size
        with profile(use_cpu=True, profile_memory=True) as saving:
            trainer.save_model(scratch)
        with profile(use_cpu=True, profile_memory=True) as evaluating:
            trainer.evaluate(eval_dataset=trainer.train_dataset)
        return {
            "evaluation": most_bytes(evaluating) + found.mapped_bytes,
            "saving": max(most_bytes(saving), last_bytes(found.stepping)) + found.mapped_bytes,
            "loading": most_bytes(found.loading) + found.mapped_bytes,
        }


main = command(__doc__, answer, options)

if __name__ == "__main__":
    sys.exit(main())
