"""A tap that observes some blocks of a model alone, from the state that a whole tap had where they start."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_geo.observe.attention_events import Asked
from lightning_geo.observe.call import CallKey
from lightning_geo.observe.evidence.origins import Origin
from lightning_geo.observe.interception import INTERCEPTION
from lightning_geo.observe.layers.frame import Frame
from lightning_geo.observe.replay.call_hooks import Fleeting
from lightning_geo.observe.tap import Tap
from lightning_geo.utils.errors import GeometryError

__all__ = ["ChangedRunError", "NarrowTap"]


class ChangedRunError(GeometryError, RuntimeError):
    """The model's run differs from the one that showed which layers can be left unobserved."""

    def __init__(self, difference: str) -> None:
        super().__init__(
            f"the model's run differs from earlier samples: {difference}. The next sample observes all of "
            "its layers again, so that those of `layers=` have values"
        )


@dataclass
class _Entry:
    """The knowledge where a module started: its arguments, and the origins of the tensors among them."""

    arguments: Any
    origins: list[Origin | None]
    #: sources and attentions so far
    counts: tuple[int, int]


@dataclass
class _Run:
    """One run of the model, as far as it can change what is known about the observed blocks."""

    #: the model itself and the observed blocks, in order
    entries: list[_Entry] = field(default_factory=list)
    #: paths of all modules with attention and of the blocks around them, in order
    started: list[str] = field(default_factory=list)
    #: the calls in the observed blocks
    keys: list[CallKey] = field(default_factory=list)


class NarrowTap(Tap):
    """Observe some blocks alone.

    While :attr:`beside` is set, that tap observes the same runs whole, and this one notes its knowledge where
    the blocks start. Afterwards it restores the noted knowledge, and checks that every run is like the noted
    one.

    Args:
        whole: The tap that observes the same model whole.
        blocks: Paths of the observed blocks.
        started: Paths of the modules whose order of starts must not change.
    """

    def __init__(self, whole: Tap, blocks: Iterable[str], started: Iterable[str]) -> None:
        super().__init__(whole._model, whole._events.evidence.special_ids)
        # the device's answers about masks arrive between samples
        self._events.evidence.structures = whole._events.evidence.structures
        self._blocks = frozenset(blocks)
        self._started = frozenset(started) | self._blocks
        #: the tap that observes whole, while the runs are noted
        self.beside: Tap | None = None
        self._noted: list[_Run] = []
        self._runs: list[_Run] = []
        self._block: Frame | None = None

    def begin_sample(self, asked: Asked = lambda call: True, *, timed: bool = True) -> None:
        """Reset counts, time and failures; coverage counts the calls that are asked for."""
        super().begin_sample(asked, timed=timed)
        self._runs = []
        if self.beside is not None:
            self._noted = self._runs

    @property
    def outdated(self) -> bool:
        """Whether the model has other modules than when the tap was made."""
        return not self._stack.tree.is_of(self._model)

    @property
    def ran(self) -> bool:
        """Whether the model ran since the sample began."""
        return bool(self._runs)

    def covers(self, path: str) -> bool:
        """Whether a module is an observed block, or in one."""
        return any(f"{path}.".startswith(f"{block}.") for block in self._blocks)

    def _hooks(self, modules: Mapping[str, nn.Module]) -> Iterator[RemovableHandle]:
        around = {"", *(block[:end] for block in self._blocks for end in _dots(block))}
        observed = {name: module for name, module in modules.items() if name in around or self.covers(name)}
        yield from super()._hooks(observed)
        for name in self._started - observed.keys():
            yield modules[name].register_forward_pre_hook(Fleeting(self._harmless(self._note(name))))

    def _note(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            if self._stack.frames and not self._work.busy and self._calls.at_own_depth:
                self._runs[-1].started.append(name)

        return hook

    def _begin(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name and not self._stack.frames:
            raise ChangedRunError(f"{name} ran by itself")
        super()._begin(name, module, args, kwargs)
        frame = self._stack.frames[-1]
        if not name:
            INTERCEPTION.unwatch(self)
            self._block = None
            self._runs.append(_Run())
            self._know(frame)
        if name in self._started:
            self._runs[-1].started.append(name)
        if name in self._blocks and self._block is None:
            self._know(frame)
            self._block = frame
            INTERCEPTION.watch(self)

    def _know(self, frame: Frame) -> None:
        """Note the whole tap's knowledge of a module's arguments, or restore it."""
        tensors: list[Tensor] = []
        arguments = _described(frame.given, tensors)
        run, origins = self._runs[-1], self._events.evidence.origins
        if self.beside is None:
            entry = self._noted_entry(len(run.entries))
            if entry is None or entry.arguments != arguments:
                raise ChangedRunError(f"{frame.name or 'the model'} got different arguments")
        else:
            known = self.beside._events.evidence.origins
            sources = [known.of(x) for x in tensors]
            entry = _Entry(arguments, sources, (known.sources, known.attentions))
            if any(origin is not None and origin.source >= known.sources for origin in sources):
                raise ChangedRunError(f"{frame.name} gets parameters as arguments, which cannot be followed")
        if not frame.name and entry.counts[0] != origins.sources:
            raise ChangedRunError("the model has different buffers")
        run.entries.append(entry)
        origins.sources, origins.attentions = entry.counts
        for x, origin in zip(tensors, entry.origins, strict=True):
            if origin is not None:
                origins.set(x, origin)

    def _noted_entry(self, number: int) -> _Entry | None:
        place = len(self._runs) - 1
        entries = self._noted[place].entries if place < len(self._noted) else []
        return entries[number] if number < len(entries) else None

    def _leave(self, module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        root = self._stack.frames[0] if self._stack.frames else None
        super()._leave(module, args, result)
        if self._block is not None and not any(frame is self._block for frame in self._stack.frames):
            self._block = None
            INTERCEPTION.unwatch(self)
        if root is not None and not self._stack.frames:
            self._check(root)

    def _check(self, root: Frame) -> None:
        """Compare a run that ended with the noted one."""
        run = self._runs[-1]
        run.keys = root.keys
        noted = self._noted[len(self._runs) - 1]
        if run.started != noted.started:
            raise ChangedRunError("different layers ran, or in a different order")
        if run.keys != noted.keys:
            raise ChangedRunError("its attention calls differ")


def _dots(path: str) -> list[int]:
    return [place for place, letter in enumerate(path) if letter == "."]


def _described(value: Any, tensors: list[Tensor]) -> Any:
    """Describe arguments so that those of two runs can be compared, and collect the tensors among them."""
    if isinstance(value, Tensor):
        same = next((number for number, x in enumerate(tensors) if x is value), None)
        if same is None:
            tensors.append(value)
        return Tensor, same, value.shape, value.dtype, value.device
    if isinstance(value, Mapping):
        return type(value), [(key, _described(item, tensors)) for key, item in value.items()]
    if isinstance(value, (tuple, list)):
        return type(value), [_described(item, tensors) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else type(value)
