"""State that a forward keeps on its modules (`self.hidden = x`), kept apart for each micro-batch in flight.

Run one after the other, micro-batches may use an attribute in turn. Suspended in the middle, they would mix:

    micro-batch 0   self.h = h0 | cut                 | read self.h
    micro-batch 1               | self.h = h1 | cut   |              read self.h

So while a step runs, what a forward binds to an attribute of a module goes into a slot of the running micro-batch. The
module's class gives way to a subclass of the same name, with a descriptor that reads the slot; when the step has ended
the class is put back, and the attribute holds what running the micro-batches one after the other leaves there, without
its graph. A micro-batch that reads before it writes sees what the one before it has written; if that one writes again
later, no order of ours can be right, and the step is refused. Plain numbers that are read first, such as counters, stay
what they are.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipelab.errors import PipelabError
from pipelab.runtime.held import MODULES_OWN, NOTHING, NUMBERS, Containers, has_graph, without_graph
from pipelab.runtime.interception import current

if TYPE_CHECKING:
    from pipelab.runtime.microbatch import MicroBatch

_DELETED = object()
OTHERS_STATE = (
    "Return what the loss needs from the forward instead, or use a schedule with one chain and one version of the "
    "weights, such as 1f1b."
)
_OWNER = "pipelab micro-batch"


class _Slot:
    """One attribute of one module.

    Attributes:
        values: what each micro-batch of this step has bound to it, by index.
        readers: the micro-batches that read it before they bound it.
        last: the highest micro-batch that has ended, and what it left.
        only_numbers: whether nothing but plain numbers, texts or None was ever bound to it.
        shared: whether all micro-batches use the module's own attribute after all, as counters do.
    """

    def __init__(self) -> None:
        self.only_numbers = True
        self.shared = False
        self.clear()

    def clear(self) -> None:
        self.values: dict[int, Any] = {}
        self.readers: set[int] = set()
        self.last: tuple[int, Any] = (-1, NOTHING)

    def before(self, index: int) -> Any:
        """What the nearest earlier micro-batch has left so far."""
        earlier = max((other for other in self.values if other < index), default=-1)
        last, value = self.last
        return self.values[earlier] if earlier > last else value if last < index else NOTHING


class KeptValues:
    """The attributes of one model's modules that forwards bind, over all steps.

    Args:
        model: whose modules are minded.

    Attributes:
        alone: whether all micro-batches run on this model, and none on a copy of it.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.alone = True
        self._names: dict[nn.Module, str] = {}
        self._slots: dict[tuple[nn.Module, str], _Slot] = {}
        self._classes: dict[type, type | None] = {}
        self._swapped: dict[nn.Module, type] = {}
        self._containers = Containers(model)
        self._mixing = False
        self._lock = threading.RLock()

    @property
    def in_use(self) -> bool:
        """Whether any forward has bound an attribute."""
        return bool(self._slots)

    @property
    def owners(self) -> set[nn.Module]:
        """The modules whose attributes a forward has bound."""
        return {module for module, _ in self._slots}

    @property
    def names(self) -> list[str]:
        """The attributes that are kept apart."""
        return [
            f"{self._names[module]}.{name}" for (module, name), slot in self._slots.items() if not slot.shared
        ]

    # -- around a step ------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Looks at the modules, for a copy of a model that has learnt: it runs without learning itself."""
        self._names = {module: name or "model" for name, module in self._model.named_modules()}
        self._containers.look(learning=True)
        self._containers.clear()

    @contextlib.contextmanager
    def apart(self, in_flight: int, learning: bool) -> Iterator[None]:
        """While a step runs: attributes are kept apart. Afterwards every module is of its own class again.

        Args:
            in_flight: the most micro-batches that are in flight at a time.
            learning: whether the model is looked at anew.
        """
        if learning:
            self._names = {module: name or "model" for name, module in self._model.named_modules()}
        self._mixing = in_flight > 1
        if self._mixing:
            self._containers.look(learning)
        try:
            with _bindings:
                for module, _ in list(self._slots):
                    self._swap(module)
                yield
        finally:
            for module, own in self._swapped.items():
                if type(module) is self._classes[own]:  # a lazy module changes its class itself
                    object.__setattr__(module, "__class__", own)
            self._swapped = {}

    def check(self) -> None:
        """Refuses containers that were filled in place; see `Containers.check`."""
        if self._mixing:
            self._containers.check()

    def settle(self) -> None:
        """After a step that went well: each attribute holds what the last micro-batch left, without its graph."""
        for (module, name), slot in self._slots.items():
            for index in sorted(slot.values):
                self._end(slot, index)
            _, value = slot.last
            if value is _DELETED:
                if hasattr(module, name):
                    delattr(module, name)
            elif value is not NOTHING:
                setattr(module, name, value)

    def clear(self) -> None:
        """Lets go of every value of the step."""
        self._containers.clear()
        for slot in self._slots.values():
            slot.clear()

    def ended(self, microbatch: MicroBatch) -> None:
        """Nothing of this micro-batch runs any more: what it kept may die, but for what is left at the end."""
        with self._lock:
            for slot in self._slots.values():
                if microbatch.index in slot.values:
                    self._end(slot, microbatch.index)

    def _end(self, slot: _Slot, index: int) -> None:
        value = slot.values.pop(index)
        if index > slot.last[0]:
            slot.last = (index, without_graph(value))

    # -- what a forward does ------------------------------------------------------------------------------------

    def bind(self, microbatch: MicroBatch, module: nn.Module, name: str, value: Any) -> bool:
        """A forward binds `module.name`; says whether that went into the micro-batch's slot.

        Raises:
            PipelabError: a later micro-batch has read the attribute already.
        """
        slot = self._slots.get((module, name))
        if slot is None:
            if not self._is_state(module, name, value):
                return False
            slot = self._make_slot(module, name)
            if slot is None:
                return False
        index = microbatch.index
        with self._lock:
            if not isinstance(value, NUMBERS) and value is not _DELETED:
                slot.only_numbers = slot.shared = False
            if slot.shared:
                return False
            later = min((reader for reader in slot.readers if reader > index), default=None)
            if later is not None and current() is not None:
                self._refuse(module, name, index, later)
            slot.values[index] = value
        return True

    def read(self, microbatch: MicroBatch, module: nn.Module, name: str) -> Any:
        """What `module.name` is for this micro-batch; `NOTHING` where it is what the module itself has.

        Raises:
            PipelabError: an earlier micro-batch left a container with a graph, which this one may go on filling; or
                the value may be of a micro-batch that runs on another copy of the model.
        """
        if module not in self._names and not self.alone:
            raise PipelabError(
                f"Micro-batch {microbatch.index} runs on a copy of the model and reads {name!r} of the model itself, "
                f"where it has not set it. {OTHERS_STATE}"
            )
        slot = self._slots.get((module, name))
        if slot is None or slot.shared:
            return NOTHING
        index = microbatch.index
        with self._lock:
            if index in slot.values:
                return slot.values[index]
            if current() is None:  # a backward's second forward, after the micro-batch has ended
                return NOTHING
            value = slot.before(index)
            slot.readers.add(index)
            if slot.only_numbers:
                slot.shared = True
                slot.clear()
                if value is _DELETED:
                    vars(module).pop(name, None)
                elif value is not NOTHING:
                    _set_attribute(module, name, value)
                return NOTHING
        # A buffer that is changed in place is looked after.
        if not self.alone and value is not module._buffers.get(name):
            raise PipelabError(
                f"Micro-batch {index} reads {self._names[module]}.{name}, which the model keeps on itself, before it "
                f"has set it: state that goes from one micro-batch to the next. This schedule runs them on several "
                f"copies of the model, and each would have a state of its own. Use a schedule with one chain, such as "
                f"1f1b."
            )
        if not isinstance(value, (Tensor, tuple)) and has_graph(value):
            self._refuse(module, name, index - 1, index)
        if isinstance(value, Tensor) and value.device.type == "cuda":
            value.record_stream(
                torch.cuda.current_stream(value.device)
            )  # another micro-batch's may get its memory
        return without_graph(value)

    def _refuse(self, module: nn.Module, name: str, writer: int, reader: int) -> None:
        raise PipelabError(
            f"Micro-batch {reader} reads {self._names[module]}.{name}, which the model keeps on itself, before it has "
            f"set it, and so sees what micro-batch {writer} left there; but that one is still in flight and changes it "
            f"later. Set it at the start of the forward, pass the value on as an argument, or use a schedule with one "
            f"micro-batch in flight."
        )

    def _is_state(self, module: nn.Module, name: str, value: Any) -> bool:
        """Whether an attribute is the model's own state, and not part of how modules are built."""
        if module not in self._names or name in MODULES_OWN or isinstance(value, (nn.Module, nn.Parameter)):
            return False
        if name in module._parameters or name in module._modules:
            return False
        for cls in type(module).__mro__:
            if name in vars(cls):
                found = vars(cls)[name]
                return isinstance(found, _Apart) or not hasattr(type(found), "__set__")
        return True

    # -- the modules' classes -----------------------------------------------------------------------------------

    def _make_slot(self, module: nn.Module, name: str) -> _Slot | None:
        """None where values cannot be kept apart, nor need be."""
        with self._lock:
            if not self._swap(module):
                if not self._mixing:
                    return None
                raise PipelabError(
                    f"{self._names[module]} sets its attribute {name!r} during the forward, and its class "
                    f"{type(module).__name__} allows no subclass that would keep those of several micro-batches apart. "
                    f"Return the value instead, or use a schedule with one micro-batch in flight."
                )
            made = type(module)
            if name not in vars(made):
                setattr(made, name, _Apart(name, made))
            return self._slots.setdefault((module, name), _Slot())

    def _swap(self, module: nn.Module) -> bool:
        """Gives the module a class that can keep values apart; False where there is none."""
        own = type(module)
        if module in self._swapped and own is self._classes[self._swapped[module]]:
            return True
        if own not in self._classes:
            self._classes[own] = _subclass(own)
        made = self._classes[own]
        if made is not None:
            self._swapped[module] = own
            object.__setattr__(module, "__class__", made)
        return made is not None


class _Apart:
    """The descriptor of an attribute that is kept apart. Outside a step it is as if it were not there."""

    def __init__(self, name: str, cls: type) -> None:
        self._name = name
        self._cls = cls

    def __get__(self, module: Any, cls: type | None = None) -> Any:
        if module is None:
            return getattr(super(self._cls, cls), self._name)  # type: ignore[arg-type]
        microbatch = _owner()
        value = NOTHING
        if microbatch is not None:
            value = microbatch.context.kept_values.read(microbatch, module, self._name)
        if value is _DELETED:
            raise AttributeError(f"{type(module).__name__!r} object has no attribute {self._name!r}")
        if value is not NOTHING:
            return value
        own = vars(module)
        return own[self._name] if self._name in own else getattr(super(self._cls, module), self._name)

    def __set__(self, module: Any, value: Any) -> None:
        microbatch = _owner()
        if microbatch is None or not microbatch.context.kept_values.bind(
            microbatch, module, self._name, value
        ):
            vars(module)[self._name] = value

    def __delete__(self, module: Any) -> None:
        microbatch = _owner()
        if microbatch is None or not microbatch.context.kept_values.bind(
            microbatch, module, self._name, _DELETED
        ):
            if self._name not in vars(module):
                raise AttributeError(f"{type(module).__name__!r} object has no attribute {self._name!r}")
            del vars(module)[self._name]


class _Bindings:
    """Sees what forwards bind to attributes of modules.

    `nn.Module.__setattr__` is one for the process: the first step to come replaces it, the last to go puts it back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0

    def __enter__(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                nn.Module.__setattr__ = _bind  # type: ignore[method-assign, assignment]

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                nn.Module.__setattr__ = _set_attribute  # type: ignore[method-assign]


_set_attribute = nn.Module.__setattr__
_bindings = _Bindings()


def _bind(module: nn.Module, name: str, value: Any) -> None:
    microbatch = _owner()
    if microbatch is None or not microbatch.context.kept_values.bind(microbatch, module, name, value):
        _set_attribute(module, name, value)


def _owner() -> MicroBatch | None:
    """The micro-batch whose forward runs in this thread, or whose backward runs a part of the forward again."""
    running = current()
    if running is None and torch._C._is_key_in_tls(_OWNER):
        running = torch._C._get_obj_in_tls(_OWNER)
    return running


@contextlib.contextmanager
def owned_by(microbatch: MicroBatch) -> Iterator[None]:
    """Around a backward: torch hands this on to the threads in which backwards run on a GPU."""
    torch._C._stash_obj_in_tls(_OWNER, microbatch)
    try:
        yield
    finally:
        torch._C._stash_obj_in_tls(_OWNER, None)


def _subclass(cls: type) -> type | None:
    """A subclass that looks like the class itself; None where it allows none."""
    if issubclass(cls, torch.jit.ScriptModule):
        return None
    looks = {"__slots__": (), "__module__": cls.__module__, "__qualname__": cls.__qualname__}
    try:
        return type(cls.__name__, (cls,), looks)
    except Exception:
        return None  # an __init_subclass__ or a metaclass of the user's that wants more
