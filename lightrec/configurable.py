"""Configurable: the arguments an object was built with, remembered, checked, described and built again.

The constructor signature is the configuration. `describe(obj)` turns it into primitives, nested parts included, and
`build` is its inverse. A checkpoint stores the description and never the object. It then loads with
`weights_only=True`, whether the object came from the command line, from Python or from another checkpoint.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
from types import NoneType
from typing import Any, ClassVar, Literal, Protocol, get_args, get_origin

from lightrec.errors import InputError


class Limit(Protocol):
    """What a number must be."""

    def allows(self, value: float) -> bool: ...

    def __str__(self) -> str: ...


@dataclass(frozen=True)
class AtLeast:
    """`least` or more."""

    least: float

    def allows(self, value: float) -> bool:
        return value >= self.least

    def __str__(self) -> str:
        return f"at least {self.least}"


@dataclass(frozen=True)
class Above:
    """More than `bound`."""

    bound: float

    def allows(self, value: float) -> bool:
        return value > self.bound

    def __str__(self) -> str:
        return f"above {self.bound}"


@dataclass(frozen=True)
class Between:
    """From `least` to `most`, both included."""

    least: float
    most: float

    def allows(self, value: float) -> bool:
        return self.least <= value <= self.most

    def __str__(self) -> str:
        return f"between {self.least} and {self.most}"


class Configurable:
    """Remembers and checks the arguments of its constructor.

    Python calls `__new__` before `__init__`, with the same arguments. Here they are bound to the signature of the
    class that is built, which is the outermost one. A base class that a constructor calls with other arguments
    therefore changes nothing.

    A constructor may pass `**network` on to another class. That class is named in `network`, and the options that the
    constructor decides itself in `fixed`. The others are then options of both: remembered one by one, with defaults.

    Two things are checked, once for all classes. An argument whose annotation is a `Literal` must be one of its
    choices. An argument named in `limits` must obey its limit, unless it is None.
    """

    limits: ClassVar[dict[str, Limit]] = {}
    """{argument: limit}, for arguments of this class; a subclass adds its own."""
    prefix: ClassVar[str] = ""
    """What stands before the name of an argument in a message, such as `--data.` of a flag."""
    network: ClassVar[type]
    """The class that `**network` is passed on to. Without a value here, so that a module may be called so, too."""
    fixed: ClassVar[tuple[str, ...]] = ()
    """Options of `network` that the constructor decides itself."""

    def __new__(cls, *args, **kwargs):
        self = super().__new__(cls)
        try:
            bound = inspect.Signature(list(options(cls).values())).bind(*args, **kwargs)
        except TypeError:  # copying calls __new__ bare, and of a wrong call __init__ says more
            return self
        bound.apply_defaults()
        check(cls, bound.arguments)
        object.__setattr__(self, "_init_args", dict(bound.arguments))
        return self

    def describe(self) -> dict[str, Any]:
        """Returns `{"class_path", "init_args"}` in primitives."""
        kind = type(self)
        arguments = {name: describe(value) for name, value in self._init_args.items()}
        return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": arguments}


def describe(value: Any) -> Any:
    """Returns the primitives that `value` can be built from.

    Raises:
        TypeError: something in it is neither primitive nor Configurable.
    """
    if isinstance(value, Configurable):
        return value.describe()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [describe(v) for v in value]
    if isinstance(value, dict):
        return {str(k): describe(v) for k, v in value.items()}
    raise TypeError(
        f"{type(value).__name__} cannot be written into a checkpoint: constructor arguments of models, encoders, item "
        "tables and objectives must be numbers, strings, lists, dicts, or such parts themselves."
    )


def is_description(node: Any) -> bool:
    """Says whether `node` describes an object."""
    return isinstance(node, dict) and set(node) == {"class_path", "init_args"}


def build(description: Any, find: Callable[[str], type]) -> Any:
    """Builds what `describe` described, nested parts included.

    Args:
        description: of an object, or a list or dict of such, or a primitive.
        find: gives the class of a dotted path; it decides which classes may be built.

    Raises:
        TypeError: a class does not take these arguments.
    """
    if isinstance(description, list):
        return [build(part, find) for part in description]
    if not isinstance(description, dict):
        return description
    if not is_description(description):
        return {key: build(part, find) for key, part in description.items()}
    kind = find(description["class_path"])
    arguments = {name: build(part, find) for name, part in description["init_args"].items()}
    try:
        return kind(**arguments)
    except TypeError as error:
        raise TypeError(f"{description['class_path']} is not built as described: {error}") from error


@cache
def options(cls: type) -> dict[str, inspect.Parameter]:
    """Returns the arguments that a class is built with, those that it passes on included."""
    own = dict(list(inspect.signature(cls.__init__).parameters.items())[1:])
    spread = [name for name, parameter in own.items() if parameter.kind is parameter.VAR_KEYWORD]
    if not spread or getattr(cls, "network", None) is None:
        # A class without a constructor inherits `*args, **kwargs` of object or of a Module, and has no options.
        return {name: p for name, p in own.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    del own[spread[0]]
    passed_on = {
        name: parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in options(cls.network).items()
        if name not in own and name not in cls.fixed
    }
    return own | passed_on


def check(cls: type, arguments: dict[str, Any]) -> None:
    """Compares arguments with the annotations and the `limits` of a class, which need not be Configurable.

    Raises:
        InputError: an unknown choice, or a number beyond its limit.
    """
    choices, limits, prefix = _choices(cls), _limits(cls), getattr(cls, "prefix", "")
    for name, value in arguments.items():
        if name in choices and not _is_one_of(value, choices[name]):
            known = ", ".join(str(choice) for choice in choices[name] if choice is not None)
            raise InputError(f"{prefix}{name} {value!r} is unknown; choose {known}.")
        limit = limits.get(name)
        if limit is not None and isinstance(value, (int, float)) and not limit.allows(value):
            raise InputError(f"{prefix}{name} ({value}) must be {limit}.")


def _is_one_of(value: Any, choices: Collection[Any]) -> bool:
    return any(value == choice and type(value) is type(choice) for choice in choices)


@cache
def _limits(cls: type) -> dict[str, Limit]:
    """The limits of a class and of its bases, as far as it has the arguments."""
    found: dict[str, Limit] = {}
    for base in reversed(cls.__mro__):
        found |= vars(base).get("limits", {})
    return {name: limit for name, limit in found.items() if name in options(cls)}


@cache
def _choices(cls: type) -> dict[str, tuple[Any, ...]]:
    """{argument: choices} of the arguments that are annotated with a Literal, or with a Literal or None."""
    init, found = cls.__init__, {}
    for name, annotation in getattr(init, "__annotations__", {}).items():
        if isinstance(annotation, str):
            try:
                annotation = eval(annotation, init.__globals__)  # our own source, as typing.get_type_hints reads it
            except (NameError, TypeError, SyntaxError):  # a name that only type checkers import
                continue
        choices: list[Any] = []
        for member in [annotation] if get_origin(annotation) is Literal else get_args(annotation):
            if get_origin(member) is Literal:
                choices += get_args(member)
            elif member in (None, NoneType):
                choices.append(None)
            else:
                break
        else:
            if any(choice is not None for choice in choices):
                found[name] = tuple(choices)
    return found
