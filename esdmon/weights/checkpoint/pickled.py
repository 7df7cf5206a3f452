"""Read a pickle as plain data: without importing names, creating objects of its classes, or calling its functions.

A pickle is a program for a stack machine. `parse` runs it on its own machine, which has only containers, numbers and
texts. Each global of the pickle stays a name, and each call of a global becomes a `Call`, a record of the name and the
arguments. Only `builders`, functions of esdmon, turn calls into something else, such as a description of a tensor. So a
hyperparameter of any type is skipped, and a malicious pickle does nothing.
"""

import pickletools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, final

from esdmon.records.table import shorten


class PickleError(Exception):
    """Raised for a damaged pickle."""


class CodeError(PickleError):
    """Raised for a pickle that would run code which does not belong in a checkpoint, such as `posix.system`."""


@dataclass(frozen=True, slots=True)
class Global:
    """The qualified name of a class or function that a pickle refers to."""

    name: str


@dataclass(slots=True, eq=False, repr=False)
class Call:
    """A call of a global by a pickle: its name and arguments, and the state that is then stored in the object."""

    name: str
    arguments: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)
    """Items that the pickle stores in the object under keys."""
    elements: list[Any] = field(default_factory=list)
    """Items that the pickle appends to the object."""


Builders = Mapping[str, Callable[..., Any]]
"""Qualified name of a global -> function of ours that takes the arguments of its calls."""


def parse(file: BinaryIO, builders: Builders, load_persistent: Callable[[Any], Any] | None = None) -> Any:
    """Return the content of one pickle; the position in the file is then behind its end.

    Args:
        file: an open file, at the start of a pickle.
        builders: functions that convert calls; any other call becomes a `Call`.
        load_persistent: returns the object that the pickle refers to by an id; None rejects such references.

    Raises:
        PickleError: for a damaged pickle.
        CodeError: for a pickle that names functions which start programs or run code. They would not be called here,
            but the user should know before opening the file in another way.
    """
    machine = _Machine(builders, load_persistent)
    try:
        for code, argument, _ in pickletools.genops(file):
            if code.name == "STOP":
                return machine.stack[-1]
            machine.step(code.name, argument)
    except PickleError:
        raise
    except LookupError as error:  # of the stack or the memo: other bytes than those of a pickle
        raise PickleError("its bytes are not those of a pickle") from error
    except Exception as error:
        msg = f"{type(error).__name__}: {shorten(str(error), _LONGEST_ERROR)}"  # the error may quote the file
        raise PickleError(msg) from error
    raise PickleError("it has no end")


def everything(content: object) -> Iterator[object]:
    """Iterate over all values in the result of `parse`, each once, in containers and in records of calls."""
    seen: set[int] = set()
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        yield value
        if isinstance(value, Call):
            waiting += [value.state, value.items, value.arguments, value.elements]
        elif isinstance(value, Mapping):
            waiting += list(value.values())[::-1]
        elif isinstance(value, list | tuple):
            waiting += list(value)[::-1]


_LONGEST_ERROR = 150  # characters; our choice
_MARK = object()
_CODE_MODULES = {
    *("os", "posix", "nt", "sys", "subprocess", "_posixsubprocess", "shutil", "socket", "runpy", "importlib", "ctypes"),
    *("pty", "code", "codeop", "webbrowser", "pickle", "_pickle", "marshal", "pip", "timeit", "cProfile", "pdb", "bdb"),
}
_CODE_BUILTINS = {"eval", "exec", "execfile", "compile", "open", "__import__", "input", "breakpoint", "globals", "vars"}
_KEYS = (str, bytes, int, float, Global, Call, type(None))
_LONGEST_KEY = 8  # parts of a tuple; our choice
_LITERALS = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
)
"""Opcodes that push their argument."""
_MAX_TUPLES = 1_000_000
"""Largest number of tuples in a pickle, where nested ones count each time that they occur; our choice."""


@final
class _Machine:
    """The stack and the memo of a pickle, and the effect of each opcode on them."""

    def __init__(self, builders: Builders, load_persistent: Callable[[Any], Any] | None) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self._builders = builders
        self._load_persistent = load_persistent
        self._budget = _MAX_TUPLES

    def step(self, opcode: str, argument: Any) -> None:
        """Execute one opcode.

        Raises:
            PickleError: for an opcode that does not belong in a checkpoint.
        """
        if opcode not in _OPERATIONS:
            msg = f"it contains the opcode {opcode}"
            raise PickleError(msg)
        _OPERATIONS[opcode](self, argument)

    def push(self, value: Any) -> None:
        """Push a value."""
        self.stack.append(value)

    def pop(self, count: int) -> list[Any]:
        """Remove and return the topmost values, the lowest first."""
        values = [self.stack.pop() for _ in range(count)][::-1]
        if any(value is _MARK for value in values):
            raise PickleError("it takes a mark for a value")
        return values

    def pop_to_mark(self) -> list[Any]:
        """Remove and return the values above the topmost mark, and remove the mark."""
        place = len(self.stack) - 1
        while place >= 0 and self.stack[place] is not _MARK:
            place -= 1
        if place < 0:
            raise PickleError("it misses a mark")
        values = self.stack[place + 1 :]
        del self.stack[place:]
        return values

    def push_tuple(self, values: list[Any]) -> None:
        """Push a tuple. Its hash visits nested tuples each time that they occur, so these are counted before."""
        made = tuple(values)
        waiting: list[Any] = [made]
        while waiting:
            self._budget -= 1
            if self._budget < 0:
                raise PickleError("it nests too many tuples")
            waiting += [value for value in waiting.pop() if isinstance(value, tuple)]
        self.push(made)

    def append(self, values: list[Any]) -> None:
        """Append values to the topmost list, set or object."""
        top = self.stack[-1]
        (top.elements if isinstance(top, Call) else top).extend(values)

    def set_items(self, pairs: list[Any]) -> None:
        """Store pairs of keys and values in the topmost dictionary or object."""
        top = self.stack[-1]
        into = top.items if isinstance(top, Call) else top
        into.update(_as_dict(pairs))

    def memoize(self, key: int) -> None:
        """Remember the topmost value."""
        self.memo[key] = self.stack[-1]

    def call(self, function: Any, arguments: Any) -> Any:
        """Return the result of a builder for a call, or else a record of the call."""
        name = function.name if isinstance(function, Global) else type(function).__name__
        arguments = tuple(arguments)
        build = self._builders.get(name) if isinstance(function, Global) else None
        return Call(name, arguments) if build is None else build(*arguments)

    def call_from_mark(self) -> None:
        """Call the first value above the topmost mark with the others."""
        values = self.pop_to_mark()
        self.push(self.call(values[0], values[1:]))

    def build(self) -> None:
        """Store a state in the topmost object; that of containers, such as `_metadata` of a state dict, is ignored."""
        (state,) = self.pop(1)
        if isinstance(self.stack[-1], Call):
            self.stack[-1].state = state

    def refer(self, identifier: Any) -> None:
        """Push the object of a persistent id."""
        if self._load_persistent is None:
            raise PickleError("it refers to objects outside of it")
        self.push(self._load_persistent(identifier))


def _is_key(key: Any) -> bool:
    """Return whether a dictionary keeps a key: others may not be hashable, or their text may be endless."""
    if isinstance(key, tuple):
        return len(key) <= _LONGEST_KEY and all(isinstance(part, str | int) for part in key)
    return isinstance(key, _KEYS)


def _as_dict(values: list[Any]) -> dict[Any, Any]:
    keys = (key if _is_key(key) else f"({type(key).__name__})" for key in values[::2])
    return dict(zip(keys, values[1::2], strict=True))


def _global(module: str, name: str) -> Global:
    is_builtin = module in ("builtins", "__builtin__") and name.partition(".")[0] in _CODE_BUILTINS
    if is_builtin or module.partition(".")[0] in _CODE_MODULES:
        raise CodeError(f"{module}.{name}")
    return Global(f"{module}.{name}")


_OPERATIONS: dict[str, Callable[[_Machine, Any], object]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda *_: None),
    **dict.fromkeys(_LITERALS, _Machine.push),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.stack.append(True),
    "NEWFALSE": lambda machine, _: machine.stack.append(False),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_SET": lambda machine, _: machine.push([]),
    "MARK": lambda machine, _: machine.push(_MARK),
    "POP": lambda machine, _: machine.stack.pop(),
    "POP_MARK": lambda machine, _: machine.pop_to_mark(),
    "DUP": lambda machine, _: machine.push(machine.stack[-1]),
    **dict.fromkeys(("LIST", "FROZENSET"), lambda machine, _: machine.push(machine.pop_to_mark())),
    "DICT": lambda machine, _: machine.push(_as_dict(machine.pop_to_mark())),
    "TUPLE": lambda machine, _: machine.push_tuple(machine.pop_to_mark()),
    "TUPLE1": lambda machine, _: machine.push_tuple(machine.pop(1)),
    "TUPLE2": lambda machine, _: machine.push_tuple(machine.pop(2)),
    "TUPLE3": lambda machine, _: machine.push_tuple(machine.pop(3)),
    "APPEND": lambda machine, _: machine.append(machine.pop(1)),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), lambda machine, _: machine.append(machine.pop_to_mark())),
    "SETITEM": lambda machine, _: machine.set_items(machine.pop(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.memoize),
    "MEMOIZE": lambda machine, _: machine.memoize(len(machine.memo)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda machine, key: machine.push(machine.memo[key])),
    "GLOBAL": lambda machine, name: machine.push(_global(*name.split(" ", 1))),
    "STACK_GLOBAL": lambda machine, _: machine.push(_global(*machine.pop(2))),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda machine, _: machine.push(machine.call(*machine.pop(2)))),
    "NEWOBJ_EX": lambda machine, _: machine.push(machine.call(*machine.pop(3)[:2])),
    "INST": lambda machine, name: machine.push(machine.call(_global(*name.split(" ", 1)), machine.pop_to_mark())),
    "OBJ": lambda machine, _: machine.call_from_mark(),
    "BUILD": lambda machine, _: machine.build(),
    "PERSID": lambda machine, identifier: machine.refer(identifier),
    "BINPERSID": lambda machine, _: machine.refer(*machine.pop(1)),
}
"""Name of an opcode -> its effect, given its argument."""
