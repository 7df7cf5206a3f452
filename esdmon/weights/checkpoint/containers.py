"""Find the weights of a model in a file with everything that a training script saves.

A checkpoint is a tree of dictionaries and lists with tensors at its leaves. Optimizer states are recognised by their
key or by their form at any depth. Tensors under a usual key, such as `state_dict`, are the model, and keep their names.
Other matrices, such as those of an EMA copy or a second model, have their path in the tree before their names.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from esdmon.errors import InputError
from esdmon.weights.checkpoint.pickled import Call, everything
from esdmon.weights.checkpoint.stored import is_tensor
from esdmon.weights.checkpoint.whole_model import is_module, state_of, weights_of

Leaves = dict[str, Any]
"""Path in the tree, joined by dots -> leaf."""
Path = tuple[str, ...]

CONTAINERS = (
    *("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "weights", "params", "app"),
    *("model_weights", "network_weights", "base_state_dict", "module_", "weight", "state"),
)
"""Keys under which training scripts save the weights of a model."""
_OPTIMIZER_KEY = re.compile(
    r"optim|scheduler|scaler|(^|_)opt(_states?|_state_dict)?$|^(grads?|gradients|(replay_)?buffers?)$"
)
"""Keys of other data beside a model: optimizers and their schedulers, gradients, and the data of an agent."""
_SETTINGS = re.compile(r"hyper_?param|hparams|^(args|config|cfg)$")
_OPTIMIZER_PART = re.compile(r"optim(izer)?s?(_states?|_state_dict)?")
_MOMENTS = {
    *("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "grad_avg", "acc_delta"),
    *("exp_avg_sq_row", "exp_avg_sq_col", "exp_avg_diff", "prev_grad", "fp32_from_fp16_params"),
}
_DEEPSPEED = {"module", "frozen_param_fragments"}
"""Keys of a checkpoint of DeepSpeed, which has frozen weights under both."""
LIGHTNING = "pytorch-lightning_version"
"""Key of a checkpoint of Lightning, whose models are often all in an attribute `model`."""
_ATTRIBUTE = "model."
_MAX_DEPTH = 64
_PACKED = re.compile(r".*ScriptObject")
"""Class of the packed parameters of torch's quantisation."""
_WRAPPERS = re.compile(r"((module|_orig_mod|_forward_module|_fsdp_wrapped_module|base_model\.model)\.)+")


def find_models(content: object) -> tuple[dict[str, Call], Leaves]:
    """Return the pickled modules in a tree, by name; if there are none, the tensors of state dicts and of modules.

    Args:
        content: dictionaries and lists, with descriptions of tensors and other values of any type.

    Raises:
        InputError: if two tensors or two modules would get the same name.
    """
    leaves = list(_leaves(content, is_tensor, _inside))
    if _has_state_dict(leaves):
        for path, module in _modules(content, beside_state=True):
            leaves += [((*path, name), leaf) for name, leaf in state_of(module).items()]
    elif modules := _named_modules(content):
        return modules, {}
    if not leaves or not leaves[0][0]:  # a tensor without a name
        return {}, {}
    if isinstance(content, Mapping) and LIGHTNING in content:
        leaves = _without_attribute(leaves)
    found: Leaves = {}
    for name, leaf in _named(leaves):
        if name in found:
            raise InputError(f"contains two tensors named {name!r}")
        found[name] = leaf
    return {}, found


def _without_attribute(leaves: Sequence[tuple[Path, Any]]) -> list[tuple[Path, Any]]:
    """Return leaves without the prefix `model.` in dictionaries whose names all have it, as in Lightning's checkpoints.

    A callback may keep the average of the model, or the model beside its average, in a dictionary of its own.
    """
    others = {path[:-1] for path, _ in leaves if path and not path[-1].startswith(_ATTRIBUTE)}
    return [
        (path if path[:-1] in others else (*path[:-1], path[-1].removeprefix(_ATTRIBUTE)), leaf)
        for path, leaf in leaves
    ]


def _named_modules(content: object) -> dict[str, Call]:
    """Return the modules of a tree without a state dict; the main one has an empty name.

    There are none if a module contains packed parameters of torch's quantisation, which are not among its parameters
    and would be missing.

    Raises:
        InputError: if two modules would get the same name.
    """
    inside = _modules(content)
    main = _container_of([(*path, "") for path, _ in inside])
    if len(inside) == 1 and all(map(str.isdecimal, inside[0][0])):
        main = inside[0][0]  # the only one in a list, or among the arguments of a function
    found: dict[str, Call] = {}
    for path, module in sorted(inside, key=lambda each: each[0] != main):
        name = "" if path == main else ".".join(path)
        if name in found:
            raise InputError(f"contains two modules named {name!r}")
        found[name] = module
    return {} if has_call(list(found.values()), _PACKED) else found


def _has_state_dict(leaves: Iterable[tuple[Path, Any]]) -> bool:
    """Return whether some leaves are a state dict, by its key or by the names of its matrices: `fc.weight`."""
    return any(_is_in_state_dict(path) and _is_matrix(leaf) for path, leaf in leaves)


def _is_in_state_dict(path: Path) -> bool:
    owner, name = ("", "", *path)[-2:]
    return owner.endswith(("state", "state_dict")) or name == "weight" or "." in name


def _modules(content: object, *, beside_state: bool = False) -> list[tuple[Path, Call]]:
    """Return the paths of modules with matrices, each once: first modules in containers, then modules in objects.

    If there is a state dict, modules in objects and in settings are omitted, such as hyperparameters of Lightning: they
    may be parts of the same model before training.
    """
    found = list(_leaves(content, is_module, _inside))
    if beside_state:
        found = [
            (path, module)
            for path, module in found
            if not any(map(_SETTINGS.search, path)) and not has_call(module, _PACKED)
        ]
    else:
        found += _leaves(content, is_module, _attributes)
    once = {id(module): (path, module) for path, module in reversed(found)}
    return [(path, module) for path, module in reversed(once.values()) if any(map(_is_matrix, weights_of(module)))]


def _is_matrix(leaf: Any) -> bool:
    return len(getattr(leaf, "shape", ())) > 1


def unflattened(paths: Mapping[tuple[Any, ...], Any]) -> dict[Any, Any]:
    """Return the tree of some leaves, from their paths."""
    tree: dict[Any, Any] = {}
    for path, leaf in paths.items():
        node = tree
        for key in path[:-1]:
            inside = node.setdefault(key, {})
            node = inside if isinstance(inside, dict) else node.setdefault(f"{key}.", {})
        node[path[-1]] = leaf
    return tree


def without_optimizer(names: Iterable[str]) -> list[str]:
    """Return the flat names that are not of an optimizer's state."""
    return [name for name in names if not is_optimizer_name(name)]


def is_optimizer_name(name: str) -> bool:
    """Return whether a flat name belongs to an optimizer's state, such as `optim.state.0.exp_avg`."""
    parts = re.split(r"[./]", name)
    return not _MOMENTS.isdisjoint(parts) or any(_OPTIMIZER_PART.fullmatch(part) for part in parts[:-1])


def settings_of(content: object) -> dict[str, str]:
    """Return the settings of `config.json` for the model that a training state names, such as `arch` of timm."""
    name = content.get("arch") if isinstance(content, Mapping) else None
    return {"architecture": name} if isinstance(name, str) else {}


def has_call(content: object, name: re.Pattern[str]) -> bool:
    """Return whether a tree contains an object that is made by a function of a name."""
    return any(isinstance(value, Call) and name.fullmatch(value.name) for value in everything(content))


def is_script(value: object) -> bool:
    """Return whether a value is a module of TorchScript, whose attributes are its weights and the modules inside."""
    return isinstance(value, Call) and value.name.startswith("__torch__.")


def has_optimizer(content: object) -> bool:
    """Return whether a tree contains the state of an optimizer, by its form."""
    return any(isinstance(value, Mapping) and _is_optimizer(value) for value in everything(content))


def _leaves(
    root: object, is_leaf: Callable[[object], bool], content_of: Callable[[Call], Any]
) -> Iterator[tuple[Path, Any]]:
    """Iterate over the paths and leaves of a tree; a node that contains itself is visited once.

    Args:
        root: of the tree.
        is_leaf: whether a value is a leaf.
        content_of: returns the content of an object that is visited.
    """
    seen: dict[int, object] = {}  # with the nodes, since the id of one that is deleted would be that of another

    def below(node: Any, path: Path) -> Iterator[tuple[Path, Any]]:
        if is_leaf(node):
            yield path, node
            return
        if isinstance(node, Call):
            node = content_of(node)
        if id(node) in seen or len(path) > _MAX_DEPTH:
            return
        seen[id(node)] = node
        for key, value in _children(node):
            if is_leaf(value) or not (isinstance(node, Mapping) and _OPTIMIZER_KEY.search(key.lower())):
                yield from below(value, (*path, key))

    return below(root, ())


def _children(node: Any) -> list[tuple[str, Any]]:
    """Return the keys and values in a container; none of an optimizer's state, and of other values."""
    if isinstance(node, Mapping) and not _is_optimizer(node):
        left_out = "frozen_param_fragments" if node.keys() >= _DEEPSPEED and node["module"] else None
        return [(str(key), value) for key, value in node.items() if key != left_out]
    return [(str(index), value) for index, value in enumerate(node)] if isinstance(node, list | tuple) else []


def _attributes(call: Call) -> Any:
    """Return the attributes of an object, or the arguments that it is made from."""
    return call.state if isinstance(call.state, Mapping) else call.items or [*call.arguments, *call.elements]


def _inside(call: Call) -> Any:
    """Return the content of an object with the form of a container, of a scripted module, or of packed parameters."""
    if call.items:
        return call.items
    if is_script(call):
        return call.state
    if _PACKED.fullmatch(call.name) and isinstance(call.state, tuple):
        return call.state
    return call.elements


def _is_optimizer(node: Mapping[Any, Any]) -> bool:
    return {"state", "param_groups"} <= node.keys() or not _MOMENTS.isdisjoint(map(str, node))


def _without_wrappers(leaves: Sequence[tuple[Path, Any]]) -> list[tuple[Path, Any]]:
    """Return leaves without wrapper prefixes that all tensors of one dictionary except its counters have.

    Each dictionary is checked separately, since of a model and its EMA copy one may be wrapped, or both.
    """
    prefixes: dict[Path, str] = {}
    for path, leaf in leaves:
        if len(getattr(leaf, "shape", ())) > 0:
            match = _WRAPPERS.match(path[-1]) if path else None
            prefix = match[0] if match else ""
            prefixes[path[:-1]] = prefix if prefix == prefixes.get(path[:-1], prefix) else ""
    return [
        ((*path[:-1], path[-1].removeprefix(prefixes.get(path[:-1], ""))), leaf) if path else (path, leaf)
        for path, leaf in leaves
    ]


def _named(leaves: Sequence[tuple[Path, Any]]) -> Iterator[tuple[str, Any]]:
    """Iterate over names and leaves; those of the model come first, with their names in the model."""
    leaves = _without_wrappers(leaves)
    main = _container_of([path for path, leaf in leaves if _is_matrix(leaf)] or [path for path, _ in leaves])
    depth = len(main)
    yield from ((".".join(path[depth:]), leaf) for path, leaf in leaves if path[:depth] == main)
    others = [(path, leaf) for path, leaf in leaves if path[:depth] != main]
    with_matrices = {path[0] for path, leaf in others if _is_matrix(leaf)}
    yield from ((".".join(path), leaf) for path, leaf in others if path[0] in with_matrices)


def _container_of(inside: list[Path]) -> Path:
    """Return the path of the dictionary with the model; empty if it is the tree itself."""
    container: Path = ()
    while True:
        heads = dict.fromkeys(path[0] for path in inside if len(path) > 1)
        usual = next((key for key in CONTAINERS if key in heads), None)
        if usual is None and len(heads) == 1 and all(len(path) > 2 for path in inside):
            (only,) = heads
            # A wrapper around a usual container, such as {"trainer": {"model": …, "optimizer": …}}.
            usual = only if any(path[1] in CONTAINERS and len(path) > 2 for path in inside) else None
        if usual is None:
            return container
        container = (*container, usual)
        inside = [path[1:] for path in inside if path[0] == usual and len(path) > 1]
