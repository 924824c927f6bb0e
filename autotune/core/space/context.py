"""What a candidate is judged against: the installed libraries, the machine, the workload, and what follows from them.

Leaves out the judging: legality.py says what is refused, and fidelity.py what departs from what was asked.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from autotune.core.batches.packing import STRATEGIES, Packing, Strategy, pack
from autotune.core.candidate import Candidate
from autotune.core.hardware import Hardware
from autotune.core.workload import Workload, max_length_candidates


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """Facts about the installed libraries (autotune/machine/installed.py reads them).

    versions: the version of each package that matters, by its name. Packages that are not installed are absent.
    flash_attention_2, flash_attention_3: whether the packages flash-attn and flash-attn-3 are installed.
    kernels: whether Hugging Face's package for kernels of the hub is installed.
    cpp_compiler: whether torch.compile would find a C++ compiler.
    """

    versions: Mapping[str, str] = field(default_factory=dict)
    flash_attention_2: bool = False
    flash_attention_3: bool = False
    kernels: bool = False
    cpp_compiler: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)  # no slots: cached_property needs a __dict__
class Context:
    """All that legality and fidelity depend on, beside the candidate itself."""

    installed: Installed
    hardware: Hardware
    workload: Workload
    _packings: dict[tuple[Strategy, int], Packing] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def asked_max_length(self) -> int:
        """The shortest length in tokens that keeps the asked coverage and the rows of a step.

        Raises NothingFits where no length keeps the coverage.
        """
        work = self.workload
        return max_length_candidates(
            work.data.lengths,
            least_coverage=work.recipe.coverage,
            model_limit=work.model.limit,
            least_rows=work.least_rows,
        )[0]

    def packing(self, candidate: Candidate) -> Packing:
        """Pack the dataset as `candidate` packs it. The candidate must have a packed length."""
        strategy, row_length = STRATEGIES[candidate.batching], candidate.row_length
        if (strategy, row_length) not in self._packings:
            tokens = self.workload.data.lengths.tokens
            self._packings[strategy, row_length] = pack(tokens, row_length=row_length, strategy=strategy)
        return self._packings[strategy, row_length]

    def accumulation(self, candidate: Candidate) -> int | None:
        """How many micro-batches of the candidate's size hold the samples of a step; None if no whole number does.

        Packed rows hold several samples each. With packing it is the nearest whole number, at least 1.
        """
        samples = self.workload.recipe.effective_batch_size
        rows = candidate.per_device_train_batch_size * candidate.devices
        if candidate.packs:
            return max(1, round(self.packing(candidate).rows_per_step(samples) / rows))
        return samples // rows if samples % rows == 0 else None

    def rows(self, candidate: Candidate) -> int:
        """Rows of an epoch, after TRL's cut and packing; an estimate where a sample of the data was tokenized."""
        data = self.workload.data
        if not candidate.packs:
            return data.rows_left(candidate.max_length)
        return round(self.packing(candidate).rows / data.share_tokenized)
