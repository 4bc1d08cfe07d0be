"""A machine that reads pickles and executes nothing.

A pickle is a program: it names functions and calls them. Here the program is read, opcode by opcode; containers, numbers and
text are built, the few functions of a table given are called, and nothing is ever imported by name. Calls of harmless
bookkeeping (`argparse.Namespace`, optimiser states) give an inert object; a call of anything else is refused. An object of a
class is never made, whatever class: its state by name is kept beside it (`Instance`). Work and memory stay in proportion to
the bytes read: there is no recursion, no text as number beyond Python's limit, no hashing but of names.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vit_jax.contracts import UserError

# Modules whose objects hold bookkeeping only; their names become inert objects, their code is never looked at.
INERT = ("argparse", "numpy", "torch", "pathlib", "collections", "omegaconf", "yacs", "timm", "typing", "_codecs")
SETS = (("builtins", "set"), ("__builtin__", "set"))
STEPS = 500_000  # opcodes; the files of the largest models, their optimisers included, have a tenth of it
LONGEST_NAME = 1000


class Name(NamedTuple):
    """What a pickle asks for by name: looked up here, never imported."""

    module: str
    name: str


UNKNOWN = object()  # stands for everything that is no tensor


class Instance:
    """Stands for an object of a class that is not looked at: the state that the pickle gives it, by name."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}


# Opcodes (Python's pickletools) that push what they carry, and groups of others that do the same here.
PUSH = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple, "EMPTY_SET": lambda: UNKNOWN,
}  # fmt: skip
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
KEEP = {"PUT", "BINPUT", "LONG_BINPUT"}
GET = {"GET", "BINGET", "LONG_BINGET"}
MARKED = {"TUPLE", "LIST", "DICT", "FROZENSET", "APPENDS", "SETITEMS", "ADDITEMS", "POP_MARK"}
NOTHING = {"PROTO", "FRAME", "STOP"}


class Machine:
    """Runs pickles that call `builders` and nothing else; `persistent` gives what lies outside of them.

    Raises:
      UserError: a name that is refused, or a program of too many steps.
      Exception: many kinds, for a pickle that is broken.
    """

    def __init__(self, builders: Mapping[Name, Callable[..., Any]], persistent: Callable[[Any], Any]):
        self.builders, self.persistent, self.steps = builders, persistent, 0

    def run(self, file: Any) -> Any:
        """What the pickle that begins here builds; the file is left behind it."""
        stack: list[Any] = []
        marks: list[int] = []
        memo: dict[int, Any] = {}
        carried: Any
        for opcode, carried, _ in pickletools.genops(file):
            self.steps += 1
            if self.steps > STEPS:
                raise _too_long()
            name = opcode.name
            if name in PUSH:
                stack.append(carried)
            elif name in GET:
                stack.append(memo[carried])
            elif name in KEEP:
                memo[carried] = stack[-1]
            elif name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif name in CONSTANTS:
                stack.append(CONSTANTS[name])
            elif name in EMPTY:
                stack.append(EMPTY[name]())
            elif name == "MARK":
                marks.append(len(stack))
            elif name in TUPLES:
                stack[-TUPLES[name] :] = [tuple(stack[-TUPLES[name] :])]
            elif name in MARKED:
                begin = marks.pop()
                items = stack[begin:]
                del stack[begin:]
                _gather(name, stack, items)
            elif name in ("APPEND", "SETITEM"):
                items = [stack.pop() for _ in range(1 if name == "APPEND" else 2)]
                _gather(name + "S", stack, items[::-1])
            elif name == "GLOBAL":
                stack.append(self._named(*carried.split(" ", 1)))
            elif name == "STACK_GLOBAL":
                second, first = stack.pop(), stack.pop()
                stack.append(self._named(first, second))
            elif name == "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(self._called(function, arguments))
            elif name in ("NEWOBJ", "NEWOBJ_EX"):
                del stack[-2 if name == "NEWOBJ" else -3 :]
                stack.append(Instance())
            elif name == "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], Instance) and isinstance(state, dict):  # else an OrderedDict's `_metadata`
                    stack[-1].state = state
            elif name == "BINPERSID":
                stack.append(self.persistent(stack.pop()))
            elif name == "POP":
                stack.pop()
            elif name == "DUP":
                stack.append(stack[-1])
            elif name not in NOTHING:
                raise ValueError(f"the opcode {name}, which torch.save does not write")
        return stack.pop()

    def _called(self, function: Any, arguments: Any) -> Any:
        self.steps += sum(len(part) for part in arguments if isinstance(part, list | tuple))
        if not isinstance(function, Name):
            return UNKNOWN
        if function in self.builders:
            return self.builders[function](*arguments)
        if function not in SETS and function.module.split(".")[0] not in INERT:
            raise UserError(
                f"Expected a .pth with tensors, this one calls {function.module[:100]}.{function.name[:100]}: refused, "
                "nothing of it was executed. Save the plain state dict again, or as safetensors."
            )
        return UNKNOWN

    def _named(self, module: Any, name: Any) -> Name:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name that is no text")
        return Name(module, name)


def _too_long() -> UserError:
    return UserError(
        f"Expected a .pth of tensors, this one takes more than {STEPS:,} steps to read: save the plain state dict again, or "
        "as safetensors."
    )


def _gather(name: str, stack: list[Any], items: list[Any]) -> None:
    """Opcodes that take all items above a mark."""
    if name == "TUPLE":
        stack.append(tuple(items))
    elif name == "LIST":
        stack.append(items)
    elif name == "DICT":
        stack.append({})
        fill(stack[-1], items)
    elif name == "FROZENSET":
        stack.append(UNKNOWN)
    elif name == "APPENDS" and isinstance(stack[-1], list):
        stack[-1].extend(items)
    elif name == "SETITEMS" and isinstance(stack[-1], dict):
        fill(stack[-1], items)


def fill(content: dict[str, Any], items: list[Any]) -> None:
    """Keys and values in turn. Only names count: hashing what else a file can build may take for ever."""
    pairs = zip(items[::2], items[1::2], strict=True)
    content.update({key: value for key, value in pairs if type(key) is str and len(key) <= LONGEST_NAME})
