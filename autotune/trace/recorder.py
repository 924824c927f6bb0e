"""The recorder: notes every storage that operators allocate while it is on, and when each is freed.

Leaves out what is recorded (trace.py) and what the record means (assembly.py).
"""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._C._autograd import _get_sequence_nr
from torch._subclasses.fake_tensor import FakeTensor, in_kernel_invocation_manager
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from autotune.core.step.profile import FORWARD
from autotune.trace import contracts, kernels
from autotune.trace.operators import Done, work_of, work_of_one

aten = torch.ops.aten
PARTS = ("forward", "loss", "backward", "clip", "optimizer")  # phases whose work counts
VIEWS = {  # half of a step's operators
    aten._unsafe_view.default,
    aten.detach.default,
    aten.expand.default,
    aten.slice.Tensor,
    aten.t.default,
    aten.transpose.int,
    aten.unsqueeze.default,
    aten.view.default,
}


@dataclass(slots=True)
class Made:
    """A storage that was allocated. shape: number of the traced step whose shape decided its size."""

    bytes: int
    step: int
    shape: int
    micro: int
    phase: str
    layer: int | None
    owner: str | None = None


@dataclass(slots=True)
class Ran:
    """An operator that allocated. made: storages it allocated. died: storages freed before the next such operator."""

    step: int
    micro: int
    phase: str
    layer: int | None
    name: str
    made: list[int]
    died: list[int]


@dataclass(slots=True)
class Worked:
    """What an operator did. part: of the step, as core/step/work.py names them."""

    step: int
    micro: int
    part: str
    layer: int | None
    done: Done


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every storage that an operator allocates, and when it is freed.

    masked: whether rows are padded. labels: label positions in a micro-batch of each traced step; None on a CPU, where
    nothing depends on them. steady: the first step that equals all later ones. Work is noted from this step on. In its
    first forward pass the last operator that uses each storage is noted, too.
    """

    def __init__(self, *, masked: bool, labels: Sequence[int] | None, steady: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.masked, self.labels, self.steady = masked, labels, steady
        self.step, self.micro, self.phase = -1, 0, "load"
        self.collated = -1  # step whose micro-batch was collated last
        self.layer: int | None = None  # whose forward is running
        self.spans: list[tuple[int, int, int]] = []  # autograd sequence numbers of each layer's forward: first, end
        self.layer_of_parameter: dict[int, int] = {}
        self.made: list[Made] = []
        self.ran = [Ran(-1, 0, "load", None, "load", [], [])]
        self.worked: list[Worked] = []
        self.used: dict[int, int] = {}  # storage of a forward -> the last operator of the forward that used it
        self._substituting = False  # a substitute is running; the work of its operator is noted as a whole
        self.living: dict[int, int] = {}  # storage -> its place in `made`
        self._watched: dict[int, Any] = {}
        self._last_node = 0  # autograd sequence number after the last operator of the loss

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.prim.device.default:  # autograd asks for this more often than it calls all other operators
            return args[0].fake_device
        if func is aten._local_scalar_dense.default:  # the step asks for a value; fake tensors have none
            dtype = args[0].dtype
            return not self.masked if dtype == torch.bool else 1.0 if dtype.is_floating_point else 1
        if self.phase == "loss":
            self._note_loss(args)
        if substitute := kernels.substitute(func, on_cpu=self.labels is None):
            one = kernels.is_one_kernel(func, on_cpu=self.labels is None)
            with self:
                whole, self._substituting = self._substituting, self._substituting or one
                try:
                    result = substitute(*args, **(kwargs or {}))
                finally:
                    self._substituting = whole
            if one:
                self._note_work(func, args, kwargs or {}, result)
            return result
        result = None
        if self.labels is None:
            workspace = kernels.workspace_bytes_on_cpu(func, args)
        else:
            result = contracts.stand_in(func, args, self.labels[max(self.step, 0)])
            workspace = contracts.workspace_bytes(func, args)
        if result is None:
            result = _run(func, args, kwargs or {})
        outputs = [value for value in tree_leaves(result) if isinstance(value, torch.Tensor)]
        fresh = [place for place, tensor in enumerate(outputs) if self._key(tensor) not in self.living]
        self._note_work(func, args, kwargs or {}, result)
        if fresh or workspace:
            layers = self._layers(args, len(outputs))
            alike = set(layers)
            self.ran.append(
                Ran(self.step, self.micro, self.phase, alike.pop() if len(alike) == 1 else None, str(func), [], [])
            )
            for place in fresh:
                self._watch(outputs[place].untyped_storage(), layers[place], self._owner(func, args))
            if workspace:
                self._take(workspace)
        if self.step == self.steady and self.micro == 1 and self.phase in FORWARD:
            self._note_uses(args)
        return result

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and dynamo's check costs more time than most operators

    def stop(self) -> None:
        """End the record: what is freed from now on belongs to no step."""
        self.ran.append(Ran(self.step + 1, 0, "end", None, "stop", [], []))

    def _note_uses(self, args: tuple[Any, ...]) -> None:
        for value in tree_leaves(args):
            place = self.block_of(value) if isinstance(value, torch.Tensor) else None
            if place is not None and self.made[place].phase in FORWARD:
                self.used[place] = len(self.ran) - 1

    def note_kernel(self, done: Done) -> None:
        """Note the work of a kernel that runs outside any operator."""
        if self.step >= self.steady:
            self.worked.append(Worked(self.step, self.micro, self._part, self._layers((), 1)[0], done))

    @property
    def _part(self) -> str:
        again = self.phase == "backward" and torch.is_grad_enabled()  # as checkpointing sets it
        return "recomputed" if again else self.phase

    def _note_work(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        if self.step < self.steady or self._substituting or self.phase not in PARTS or func in VIEWS:
            return
        for layer, done in self._done(func, args, kwargs, result):
            self.worked.append(Worked(self.step, self.micro, self._part, layer, done))

    def _done(
        self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
    ) -> Iterator[tuple[int | None, Done]]:
        """The work of an operator, by layer. An operator over all parameters does a share of it in each layer."""
        if args and isinstance(args[0], list | tuple) and self.phase in ("clip", "optimizer"):
            for place, tensor in enumerate(args[0]):
                yield self._layer_of(tensor), work_of_one(func, args, place)
        elif (done := work_of(func, args, kwargs, result)) is not None:
            yield self._layers(args, 1)[0], done

    def _take(self, size: int) -> None:
        """Note `size` bytes that the last operator needed only while it ran."""
        ran = self.ran[-1]
        ran.made.append(len(self.made))
        ran.died.append(len(self.made))
        self.made.append(Made(size, self.step, self.step, self.micro, self.phase, ran.layer, "workspace"))

    @staticmethod
    def _key(tensor: torch.Tensor) -> int:
        return int(tensor.untyped_storage()._cdata)

    def block_of(self, tensor: torch.Tensor) -> int | None:
        """The place in `made` of a tensor's storage; None if it was allocated before the record."""
        return self.living.get(self._key(tensor))

    def address_of(self, storage: torch.UntypedStorage) -> int:
        """A stand-in for a storage's address. It never changes; any two lie further apart than a storage is long."""
        return self.living[int(storage._cdata)] << 48

    def _watch(self, storage: torch.UntypedStorage, layer: int | None, owner: str | None) -> None:
        key = int(storage._cdata)
        if key in self.living:
            return
        place = len(self.made)
        shape = self.collated if self.phase == "batch" else self.step
        self.made.append(Made(storage.nbytes(), self.step, shape, self.micro, self.phase, layer, owner))
        self.living[key] = place
        self.ran[-1].made.append(place)

        def died(_: Any) -> None:
            del self.living[key], self._watched[place]
            self._last().died.append(place)

        self._watched[place] = weakref.ref(storage, died)

    def _last(self) -> Ran:
        """What frees a storage now: the last operator, or the end of the backward.

        An autograd function that keeps tensors as plain attributes frees them with the whole graph, in all layers.
        """
        last = self.ran[-1]
        if self.phase == "backward" and last.layer is not None and torch._C._current_autograd_node() is None:
            self.ran.append(Ran(self.step, self.micro, self.phase, None, "release", [], []))
        return self.ran[-1]

    def _owner(self, func: Any, args: tuple[Any, ...]) -> str | None:
        """Name autocast's copies of weights; None for anything else."""
        if func is not aten._to_copy.default:
            return None
        source = self.block_of(args[0])
        return "weight copies" if source is not None and self.made[source].owner in ("weights", "adapters") else None

    def _layers(self, args: tuple[Any, ...], outputs: int) -> list[int | None]:
        """The decoder layer of each output; None outside of the layers."""
        if self.phase == "backward":
            return [self._layer_of_node()] * outputs
        if self.phase in ("clip", "optimizer", "end") and args:  # these go over the parameters
            inputs = args[0] if isinstance(args[0], list | tuple) else [args[0]] * outputs
            if len(inputs) == outputs:
                return [self._layer_of(tensor) for tensor in inputs]
        return [self.layer] * outputs

    def _note_loss(self, args: tuple[Any, ...]) -> None:
        """Find the layer that an operator of the loss belongs to.

        Each router has a loss of its own, made of logits that outlive their layer. An operator that uses no tensor of
        a layer belongs to the layer of the operator before it.
        """
        blocks = (self.block_of(value) for value in args if isinstance(value, torch.Tensor))
        made = [self.made[place] for place in blocks if place is not None]
        layers = [block.layer for block in made if block.layer is not None and block.phase in FORWARD]
        self.layer = max(layers, default=self.layer)
        node = _get_sequence_nr()
        if self.layer is not None and node > self._last_node:
            self.spans.append((self._last_node, node, self.layer))
        self._last_node = node

    def _layer_of(self, tensor: Any) -> int | None:
        place = self.block_of(tensor) if isinstance(tensor, torch.Tensor) else None
        return None if place is None else self.made[place].layer

    def _layer_of_node(self) -> int | None:
        """The layer whose forward made the autograd node that runs now."""
        node: Any = torch._C._current_autograd_node()
        if node is None:
            return None
        variable = getattr(node, "variable", None)  # of an AccumulateGrad
        if variable is not None:
            return self.layer_of_parameter.get(id(variable))
        number = node._sequence_nr()
        return next((layer for first, end, layer in self.spans if first <= number < end), None)


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operator on fake tensors. Views are made directly: FakeTensorMode's cache is slower than that."""
    source = args[0] if args else None
    if func in VIEWS and type(source) is FakeTensor and source.constant is None:
        with in_kernel_invocation_manager(source.fake_mode):
            view = func(*args, **kwargs)
        return FakeTensor(source.fake_mode, view, source.fake_device)
    return func(*args, **kwargs)
