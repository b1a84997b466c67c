"""The config groups of compressed-tensors: which modules are quantized, and how.

Keys as in the package's QuantizationConfig, QuantizationScheme and QuantizationArgs. A target is a module's name, "re:"
and a regular expression that matches from its beginning, or a class of modules; the first target that fits decides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from herder.core.errors import ModelFileError, UnsupportedModel
from herder.weights.fields import Fields, short

FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision")
STRATEGIES = ("tensor", "channel", "group", "block")


@dataclass(frozen=True, slots=True)
class Scheme:
    """kind: int or float. group: inputs that share a scale. block: (rows, columns) that share one."""

    bits: int
    kind: str
    symmetric: bool
    strategy: str
    group: int | None
    block: tuple[int, int] | None


class Schemes:
    """Which scheme a module has. Raises ModelFileError, UnsupportedModel for groups that are not understood."""

    def __init__(self, keys: Fields) -> None:
        self._where = keys.where
        _check_format(keys, keys.text("format", "pack-quantized"))
        sparsity = keys.get("sparsity_config") or {}
        if sparsity and (not isinstance(sparsity, dict) or sparsity.get("format", "dense") != "dense"):
            raise UnsupportedModel(
                f"{keys.where}: sparsity_config = {short(sparsity)} is not supported: use dense ones"
            )
        for key, what in (("transform_config", "rotated activations"), ("moe_sparsity_config", "pruned experts")):
            keys.neutral(key, ({},), what)
        self._ignored = _strings(keys, "ignore")
        groups = keys.get("config_groups")
        if not isinstance(groups, dict) or not groups or not all(isinstance(v, dict) for v in groups.values()):
            raise keys.wrong("config_groups", groups, "expected an object of groups")
        self._groups = [_group(keys, name, group) for name, group in groups.items()]

    def of(self, module: str) -> Scheme:
        """The scheme of a module that has quantized weights."""
        if any(_matches(target, module) for target in self._ignored):
            raise ModelFileError(f"{self._where}: {module} is on quantization_config.ignore, but is quantized")
        for targets, scheme in self._groups:
            if scheme is not None and any(_matches(target, module) for target in targets):
                return scheme
        schemes = {scheme for _, scheme in self._groups if scheme is not None}
        if len(schemes) == 1:  # targets by names that transformers has changed since
            return schemes.pop()
        raise ModelFileError(f"{self._where}: no group of quantization_config names {module}, but it is quantized")


def _check_format(keys: Fields, name: Any) -> None:
    if name not in FORMATS:
        raise UnsupportedModel(
            f"{keys.where}: compressed-tensors format {short(name)} is not supported; supported are "
            f"{', '.join(FORMATS)}"
        )


def _group(keys: Fields, name: str, values: Mapping[str, Any]) -> tuple[list[str], Scheme | None]:
    """The targets of a group and the scheme of their weights, None where only activations are quantized."""
    group = Fields(keys.where, {f"config_groups.{name}.{k}": v for k, v in values.items()}, f"config_groups.{name}.")
    targets = _strings(group, "targets")
    for key in ("input_activations", "output_activations"):
        group.get(key)
    if group.get("format") is not None:
        _check_format(keys, group.get("format"))
    weights = group.get("weights")
    _refuse_unread(group)
    if weights is None:
        return targets, None
    if not isinstance(weights, dict):
        raise group.wrong("weights", weights, "expected an object")
    args = Fields(keys.where, {f"{group.prefix}weights.{k}": v for k, v in weights.items()}, f"{group.prefix}weights.")
    return targets, _scheme(args)


def _scheme(args: Fields) -> Scheme:
    size = args.get("group_size")
    group = None if size in (None, -1) else args.integer("group_size")
    implied = "tensor" if size is None else "channel" if size == -1 else "group"
    strategy = args.text("strategy", implied).lower()
    if strategy not in STRATEGIES:
        raise UnsupportedModel(
            f"{args.where}: {args.prefix}strategy = {short(strategy)} is not supported; supported are "
            f"{', '.join(STRATEGIES)}"
        )
    if (strategy == "group") != (group is not None):
        raise ModelFileError(f"{args.where}: {args.prefix}strategy is {strategy} with group_size {size}")
    kind = args.text("type", "int").lower()
    if kind not in ("int", "float"):
        raise args.wrong("type", kind, "expected int or float")
    args.neutral("dynamic", (False,), "weights quantized while running")
    for key in ("actorder", "observer", "observer_kwargs", "scale_dtype", "zp_dtype"):
        args.get(key)  # how the numbers were found, and in which types the tensors already are
    bits, symmetric = args.integer("num_bits", 8, high=32), args.flag("symmetric", True)
    scheme = Scheme(bits, kind, symmetric, strategy, group, _block(args, strategy))
    _refuse_unread(args)
    return scheme


def _block(args: Fields, strategy: str) -> tuple[int, int] | None:
    """[rows, columns], or "128x128" as older files write it."""
    value = args.get("block_structure")
    if strategy != "block":
        return None
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}x[0-9]{1,9}", value):
        value = [int(n) for n in value.split("x")]
    if not isinstance(value, list) or len(value) != 2 or any(type(n) is not int or n < 1 for n in value):
        raise args.wrong("block_structure", value, "expected [rows, columns]")
    return value[0], value[1]


def _strings(keys: Fields, key: str) -> list[str]:
    """A list of names and regular expressions, the latter compiled once to see that they are some."""
    value = keys.get(key) or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise keys.wrong(key, value, "expected a list of names")
    for item in value:
        try:
            re.compile(item.removeprefix("re:"))
        except re.error as error:
            if item.startswith("re:"):
                raise keys.wrong(key, item, f"not a regular expression ({error})") from None
    return value


def _matches(target: str, module: str) -> bool:
    if target.startswith("re:"):
        return re.match(target[3:], module) is not None
    return target == module or target == ("Embedding" if module.endswith("embed_tokens") else "Linear")


def _refuse_unread(keys: Fields) -> None:
    if unknown := keys.unread():
        raise UnsupportedModel(
            f"{keys.where}: {keys.prefix}{unknown[0]} = {short(keys.get(unknown[0]))} is not known here and may change "
            "the weights: use a newer version of herder"
        )
