"""Predicted against real peaks of evaluating, saving and loading on the CPU: torch's own allocation events.

    python -m benchmarks.memory.phases_cpu --home DIR [--count 24] [--out FILE] [--json]

Cases are those of memory_truth_cpu.py, with TRL's fused head. Each trains its steps; then the same trainer saves, and
evaluates micro-batches like those that it trained. What is loaded is compared with the most that lives until the
trainer stands. Each row is of a process of its own, under the profiler from before the first weight. With `--json` one
object is printed.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from autotune.core.candidate import short_name
from autotune.core.memory.estimate import demand_of
from autotune.core.memory.law import memory_law
from autotune.core.step.deepening import deepen
from autotune.core.workload import ModelFacts
from autotune.machine.installed import installed
from autotune.trace.profiles import STACK
from benchmarks.memory.cases import ARCHITECTURES, Case, draw_cases, find_model, plain_cpu
from benchmarks.memory.truth_cpu import last_bytes, most_bytes, request_and_batch, trained
from benchmarks.pools import quiet_pool
from benchmarks.rows import append, own_rows, today

RESULTS = Path(__file__).parents[1] / "results" / "memory_phases_cpu.jsonl"
PHASES = ("evaluation", "saving", "loading")
SINCE = 10  # format of profiles: what it is about, last uses, is as it was then


def main() -> None:
    """Draw, predict, measure, append; then say how far off the predictions are. A case that fails ends it."""
    arguments = _arguments()
    facts = {model.name: model for name in ("tiny", *ARCHITECTURES) for model in [find_model(name, arguments.home)]}
    about = {"format": SINCE, "versions": {name: installed().versions[name] for name in STACK}}
    done = [row["case"] for row in own_rows(arguments.out, about, tuple(about))]
    for drawn in draw_cases(list(facts.values()), plain_cpu(), count=arguments.count, seed=arguments.seed):
        case = replace(drawn, loss="fused")  # this trainer's own
        if case.key in done:
            continue
        with quiet_pool(2, tasks_each=1) as pool:
            both = [pool.apply_async(work, (case, facts[case.model])) for work in (predict, measure)]
            predicted, measured = (found.get() for found in both)
        row = {
            "date": today(),
            "case": case.key,
            "name": f"{case.model} {'padded ' * case.padded}{short_name(case.candidate)}",
            "predicted": predicted,
            "measured": measured,
            "errors": {phase: predicted[phase] / measured[phase] - 1 for phase in PHASES},
            **about,
        }
        append(arguments.out, row)
        if not arguments.json:
            errors = "  ".join(f"{phase} {row['errors'][phase]:+7.2%}" for phase in PHASES)
            print(f"{errors}  {row['name']}", flush=True)
    rows = own_rows(arguments.out, about, tuple(about))
    print(json.dumps({"rows": rows, **summary(rows)}) if arguments.json else summary(rows))


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Median, lowest and highest error of each phase."""
    errors = {phase: [row["errors"][phase] for row in rows] for phase in PHASES}
    return {
        "count": len(rows),
        **{
            phase: {"median_abs_error": median(map(abs, found)), "least_error": min(found), "most_error": max(found)}
            for phase, found in errors.items()
        },
    }


def predict(case: Case, facts: ModelFacts) -> dict[str, int]:
    """The peaks of the phases, in bytes, as an estimate has them."""
    from autotune.trace.request import TraceRequest
    from autotune.trace.trace import trace

    request, batch = request_and_batch(case, facts)
    profile = trace(TraceRequest(**request.asked))
    law = memory_law(profile, layers=facts.layers, accumulation=case.candidate.gradient_accumulation_steps)
    whole = deepen(profile, facts.layers)
    phases = demand_of(whole, law, None, candidate=case.candidate, batch=batch).phases
    return {phase: phases[phase] for phase in PHASES}


def measure(case: Case, facts: ModelFacts) -> dict[str, int]:
    """The same, as they are: live bytes, and those of weights that are mapped from their file."""
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


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True, help="directory in which models are made and kept")
    parser.add_argument("--count", type=int, default=24, help="cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS, help="file that rows are appended to")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
