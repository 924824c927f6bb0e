"""The real trainer, built from a task: TRL's `SFTTrainer`, which here counts tokens and can reorder steps.

A trial and a run use the same trainer.
- A run trains the epoch in the sampler's order.
- A trial trains steps of the same epoch in another, seeded order, and stops earlier. The steps come from the whole
  dataset, because grouping only a small part of it by length would understate the gain of grouping.
- A comparison trains the same samples in each step, whatever the candidate.
Leaves out processes and outcomes (worker.py).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import SeedableRandomSampler
from datasets import Dataset, concatenate_datasets, load_from_disk
from numpy.typing import NDArray
from peft import LoraConfig
from torch.utils.data import Sampler
from transformers import BitsAndBytesConfig, TrainerCallback
from transformers.trainer_pt_utils import BatchRebalanceSampler, LengthGroupedSampler
from trl import SFTConfig, SFTTrainer

from autotune.core.batches.packing import STRATEGIES, pack
from autotune.core.candidate import Candidate
from autotune.core.knobs import KNOBS
from autotune.core.recipe import Recipe
from autotune.core.units import count_of
from autotune.data.tokenization import label_spans
from autotune.train.random_weights import draw_model
from autotune.train.task import Compare, Measure, Task, Train

Integers = NDArray[np.int64]

COUNTS = "autotune_counts"  # key under which the collator adds a micro-batch's counts to it


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Counts of one micro-batch. positions: tokens and padding. useful: labels that reach the loss."""

    rows: int
    positions: int
    tokens: int
    useful: int


class CountingCollator:
    """A collator that adds counts to each micro-batch.

    The first label of a row never reaches the loss, because nothing predicts it. Padding-free rows already mask it.
    """

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = self.collator(rows)
        batch[COUNTS] = Counts(
            rows=len(rows),
            positions=batch["input_ids"].numel(),
            tokens=sum(len(row["input_ids"]) for row in rows),
            useful=int((batch["labels"][:, 1:] != -100).sum()),
        )
        return batch


class DrawnSteps(BatchRebalanceSampler):  # type: ignore[misc]  # transformers hands only this class on as batch sampler
    """A batch sampler that yields the given micro-batches in their order, anew each time."""

    def __init__(self, micro_batches: Sequence[Sequence[int]]) -> None:
        self.micro_batches = micro_batches

    def __iter__(self) -> Iterator[Sequence[int]]:
        return iter(self.micro_batches)

    def __len__(self) -> int:
        return len(self.micro_batches)


class GroupedByLength(LengthGroupedSampler):  # type: ignore[misc]
    """Transformers' grouping, seeded by epoch, so that a resumed run finds its place in the order."""

    def __init__(self, sampler: LengthGroupedSampler, seed: int) -> None:
        super().__init__(sampler.batch_size, lengths=sampler.lengths)
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader when an epoch begins."""
        self.generator = torch.Generator().manual_seed(self.seed + epoch)


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochSteps:
    """The full optimizer steps of one epoch, in the real sampler's order.

    steps: for each step, for each micro-batch, the numbers of its rows. positions, tokens, useful: counts of each step,
    shape (steps,). largest: positions of each step's largest micro-batch, shape (steps,).
    """

    steps: Sequence[Sequence[Sequence[int]]]
    positions: Integers
    tokens: Integers
    useful: Integers
    largest: Integers


class Trainer(SFTTrainer):  # type: ignore[misc]
    """TRL's trainer, which counts every micro-batch and, for a trial, reorders the steps of the epoch."""

    def __init__(self, task: Task, **arguments: Any) -> None:
        self.task = task
        self.step_counts: list[Counts] = []
        self.epoch: EpochSteps | None = None
        self.order: list[int] = []
        self.shared_batches: Sequence[Sequence[int]] = ()  # micro-batches of a comparison
        super().__init__(**arguments)
        self.data_collator: Any = CountingCollator(
            self.data_collator
        )  # set afterwards: TRL refuses a collator of ours when it packs

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[Any]:
        if isinstance(self.task.goal, Compare):
            return DrawnSteps(self.shared_batches)
        sampler = self._real_sampler()
        if isinstance(self.task.goal, Train):
            return sampler
        self.epoch = self._lay_out(sampler)
        self.order = draw_order(self.epoch.largest, seed=self.task.seed, worst_first=self.task.goal.worst_first)
        return DrawnSteps([micro for number in self.order for micro in self.epoch.steps[number]])

    def _real_sampler(self) -> Sampler[Any]:
        """Transformers' sampler, seeded so that its order depends on the seed alone.

        Unseeded, grouping would use the global generator, and batch rebalancing a seed of its own. With our seed a
        rebalanced step holds exactly the samples of the random step.
        """
        sampler: Sampler[Any] = super()._get_train_sampler(self.train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            sampler = GroupedByLength(sampler, self.args.seed)
        elif isinstance(sampler, BatchRebalanceSampler):
            sampler.seed = self.args.seed
        return sampler

    def _lay_out(self, sampler: Sampler[Any]) -> EpochSteps:
        """Lay out one epoch in the order of `sampler`. A last step that is not full is left out."""
        size, accumulation = self.args.per_device_train_batch_size, self.args.gradient_accumulation_steps
        if isinstance(sampler, BatchRebalanceSampler):
            micro_batches = [list(rows) for rows in sampler]
        else:
            if not isinstance(sampler, LengthGroupedSampler):  # accelerate replaces a plain random sampler by this one
                sampler = SeedableRandomSampler(self.train_dataset, data_seed=self.args.seed)
            order = list(sampler)
            micro_batches = [order[i : i + size] for i in range(0, len(order) // size * size, size)]
        full = len(micro_batches) // accumulation * accumulation
        steps = [micro_batches[i : i + accumulation] for i in range(0, full, accumulation)]
        if not steps:
            raise ValueError(
                f"too few for one optimizer step of {size * accumulation}: {count_of(len(self.train_dataset), 'row')}"
            )
        tokens, useful = row_counts(self.train_dataset)
        padded = np.array([[self._positions(tokens[rows]) for rows in step] for step in steps], dtype=np.int64)
        rows_of = [np.concatenate(step) for step in steps]
        return EpochSteps(
            steps=steps,
            positions=padded.sum(axis=1),
            tokens=np.array([tokens[rows].sum() for rows in rows_of]),
            useful=np.array([useful[rows].sum() for rows in rows_of]),
            largest=padded.max(axis=1),
        )

    def share_samples(self, parts: Sequence[Dataset]) -> None:
        """Train one step on each part. `fitting_accumulation` has chosen the number of micro-steps."""
        arguments = (self.processing_class, self.args, self.args.packing, None, "train")
        parts = [self._prepare_dataset(part, *arguments) for part in parts]  # TRL packs a step's samples together
        self.train_dataset = concatenate_datasets(parts)
        tokens, _ = row_counts(self.train_dataset)
        micro_batches: list[Sequence[int]] = []
        begin = 0
        for part in parts:
            rows = np.arange(begin, begin + len(part))
            if self.task.candidate.batching in ("batch_rebalance", "group_by_length"):
                rows = rows[np.argsort(tokens[rows])]
            micro_batches += [each.tolist() for each in np.array_split(rows, self.args.gradient_accumulation_steps)]
            begin += len(part)
        self.shared_batches = micro_batches

    def _positions(self, tokens: Integers) -> int:
        multiple = self.args.pad_to_multiple_of or 1
        width = int(tokens.sum() if self.padding_free else tokens.max())
        padded = -(-width // multiple) * multiple
        return padded if self.padding_free else padded * len(tokens)

    def training_step(self, model: Any, inputs: dict[str, Any], *arguments: Any, **keywords: Any) -> Any:
        self.step_counts.append(inputs.pop(COUNTS))
        return super().training_step(model, inputs, *arguments, **keywords)


def row_counts(dataset: Any) -> tuple[Integers, Integers]:
    """Count tokens and useful labels of each row of a prepared dataset: two arrays of shape (rows,).

    The first label of every document in a row is masked, by TRL's collator in packed rows; a plain row is one document.
    """
    tokens, useful = [], []
    for table in dataset.with_format("arrow").iter(batch_size=10_000):
        labels = table["labels"].combine_chunks()
        lengths = labels.value_lengths().to_numpy().astype(np.int64)
        rows = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        documents = rows
        if "seq_lengths" in table.column_names:
            parts = table["seq_lengths"].combine_chunks().flatten().to_numpy()
            documents = np.concatenate([[0], np.cumsum(parts)[:-1]])
        counted = labels.flatten().to_numpy() != -100
        counted[documents] = False
        tokens.append(lengths)
        useful.append(np.add.reduceat(counted, rows, dtype=np.int64))
    return np.concatenate(tokens), np.concatenate(useful)


def draw_order(largest: Integers, *, seed: int, worst_first: bool) -> list[int]:
    """Order the steps of an epoch for a trial.

    With `worst_first` the step with the smallest largest micro-batch comes first, then the step with the largest one.
    The other steps are in a random order that does not depend on sizes, so that candidates with the same batching train
    the same steps. largest: positions of each step's largest micro-batch, shape (steps,).
    """
    order: list[int] = np.random.default_rng(seed).permutation(len(largest)).tolist()
    if worst_first:
        ends = list(dict.fromkeys((int(largest.argmin()), int(largest.argmax()))))
        order = ends + [step for step in order if step not in ends]
    return order


def build_trainer(task: Task, callbacks: Sequence[TrainerCallback] = ()) -> Trainer:
    """Load the model and construct the trainer that `task` describes. Raises whatever the libraries raise."""
    dataset, parts = load_from_disk(task.tokenized_path), list[Dataset]()
    if isinstance(task.goal, Compare):
        parts = drawn_parts(dataset, task)
        dataset = concatenate_datasets(parts)
        goal = replace(task.goal, steps=len(parts))  # a small dataset has fewer steps than were asked for
        task = replace(task, goal=goal, candidate=fitting_accumulation(task.candidate, parts))
    candidate, recipe = task.candidate, task.recipe
    arguments, quantization, model = sft_config(task), quantization_config(candidate), task.model_path
    if task.random_weights:  # TRL also takes a model object, and then refuses arguments for loading one
        model = draw_model(model, quantization_config=quantization, **arguments.model_init_kwargs)
        arguments.model_init_kwargs, quantization = None, None
    trainer = Trainer(
        task,
        model=model,
        args=arguments,
        train_dataset=dataset,
        quantization_config=quantization,
        peft_config=lora_config(recipe, task.not_adapted) if candidate.method != "full" else None,
        callbacks=list(callbacks),
    )
    if parts:
        trainer.share_samples(parts)
    return trainer


def drawn_parts(dataset: Dataset, task: Task) -> list[Dataset]:
    """Draw the samples of each step of a comparison: the effective batch size, whatever the candidate."""
    assert isinstance(task.goal, Compare)
    samples, within = task.recipe.effective_batch_size, task.goal.learned_within
    learned = np.arange(len(dataset)) if within is None else np.flatnonzero(label_spans(dataset).first < within)
    drawn = learned[np.random.default_rng(task.seed).permutation(len(learned))][: task.goal.steps * samples]
    if task.goal.order:
        drawn = np.random.default_rng((task.seed, task.goal.order)).permutation(drawn)
    if len(drawn) < samples:
        raise ValueError(f"too few for one optimizer step of {samples}: {count_of(len(drawn), 'sample')}")
    return [dataset.select(drawn[i : i + samples]) for i in range(0, len(drawn) // samples * samples, samples)]


def fitting_accumulation(candidate: Candidate, parts: Sequence[Dataset]) -> Candidate:
    """Return the candidate with at most as many micro-steps as each part has rows; packing may leave few rows.

    Raises ValueError when its micro-batches would then have more rows than in its trial.
    """
    if not candidate.packs:
        return candidate
    rows = [
        pack(
            np.array([len(row) for row in part["input_ids"]]),
            row_length=candidate.row_length,
            strategy=STRATEGIES[candidate.batching],
        ).rows
        for part in parts
    ]
    accumulation = min(candidate.gradient_accumulation_steps, *rows)
    if (most := -(-max(rows) // accumulation)) > candidate.per_device_train_batch_size:
        raise ValueError(f"{max(rows)} packed rows of a step in {accumulation} micro-steps make batches of {most}")
    return replace(candidate, gradient_accumulation_steps=accumulation)


def sft_config(task: Task) -> SFTConfig:
    """Build TRL's configuration of a task."""
    candidate, recipe = task.candidate, task.recipe
    on_cpu = task.device == "cpu"
    return SFTConfig(
        **{name: getattr(candidate, name) for name, knob in KNOBS.items() if knob.passed_on},
        output_dir=task.output_dir,
        use_cpu=on_cpu,
        model_init_kwargs={
            "dtype": candidate.weights_dtype,
            "attn_implementation": candidate.attention,
            "device_map": None if on_cpu else {"": 0},  # "auto" may offload to the host without saying so
            **({"use_kernels": True} if candidate.use_kernels else {}),
        },
        # data
        max_length=candidate.packed_length if candidate.packs else candidate.max_length,
        packing=candidate.packs,
        packing_strategy=candidate.batching.removeprefix("pack_") if candidate.packs else "bfd",
        padding_free=candidate.batching == "padding_free",
        completion_only_loss=recipe.completion_only_loss,
        train_sampling_strategy=(
            candidate.batching if candidate.batching in ("batch_rebalance", "group_by_length") else "random"
        ),
        dataloader_pin_memory=candidate.dataloader_pin_memory and not on_cpu,
        data_seed=task.seed,
        seed=task.seed,
        # the step
        bf16=candidate.mixed_precision == "bf16",
        fp16=candidate.mixed_precision == "fp16",
        tf32=candidate.tf32 if not on_cpu else None,
        optim=candidate.optimizer,
        neftune_noise_alpha=recipe.neftune_noise_alpha,
        **checkpointing_arguments(candidate),
        # what was asked for
        num_train_epochs=recipe.epochs,
        max_steps=max_steps(task),
        learning_rate=recipe.learning_rate_for(candidate.method),
        lr_scheduler_type=recipe.lr_scheduler_type,
        warmup_steps=recipe.warmup_ratio,  # below 1 it is a share of the steps (transformers 5)
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        # reporting
        logging_steps=1,
        logging_nan_inf_filter=False,  # a NaN is an outcome, not to be averaged away
        report_to="none",
        disable_tqdm=True,
        save_strategy="steps" if isinstance(task.goal, Train) else "no",
        save_steps=task.goal.save_steps if isinstance(task.goal, Train) else 500,
        save_total_limit=2,
    )


def checkpointing_arguments(candidate: Candidate) -> dict[str, Any]:
    """Build the checkpointing arguments. TRL reads the old names and its own key `selective`; transformers the rest."""
    keywords: dict[str, Any] = {"use_reentrant": False}
    if candidate.checkpointing == "selective":
        keywords["selective"] = True
    if candidate.checkpointing == "every_n":
        keywords["every_n_layers"] = candidate.every_n_layers
    return {
        "gradient_checkpointing": candidate.checkpointing != "off",
        "gradient_checkpointing_kwargs": keywords if candidate.checkpointing != "off" else None,
    }


def max_steps(task: Task) -> int:
    """Return `SFTConfig.max_steps`. A trial gets as many steps as it may need; -1 trains the epochs of the recipe."""
    if isinstance(task.goal, Measure):
        return max(task.recipe.max_steps or 0, task.goal.warmup_steps(task.device) + task.goal.most_steps)
    if isinstance(task.goal, Compare):
        return task.goal.steps
    return task.recipe.max_steps or -1


def lora_config(recipe: Recipe, not_adapted: Sequence[str] = ()) -> LoraConfig:
    """Build PEFT's configuration of the recipe's adapters. not_adapted: modules that the default choice leaves out."""
    modules = recipe.lora_target_modules
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules="all-linear" if modules == ("all-linear",) else list(modules),
        exclude_modules=(list(not_adapted) or None) if modules == ("all-linear",) else None,
    )


def quantization_config(candidate: Candidate) -> BitsAndBytesConfig | None:
    """nf4 with double quantization as in QLoRA (arXiv:2305.14314), or LLM.int8(); None for an unquantized base."""
    if candidate.method == "qlora":
        compute = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": torch.float32}[candidate.mixed_precision]
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
        )
    if candidate.method == "lora_int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return None
