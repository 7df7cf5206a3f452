"""The modules of a model under the names that its author gave them.

Wrappers rename what they hold (`_orig_mod.fc1`, `module.fc1`). They are known by their type and looked through at any
depth; names are never cut by their spelling, since a user's own module may be called `module`.
"""

from collections.abc import Iterator

from torch import nn

# By class name, within torch: importing these classes would load dynamo and the distributed package.
_INNER = {
    "OptimizedModule": "_orig_mod",  # torch.compile
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
}


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside the wrappers around it."""
    while True:
        attribute = _INNER.get(type(module).__name__) if type(module).__module__.startswith("torch.") else None
        inner = None if attribute is None else getattr(module, attribute, None)
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(canonical name, module), the model itself first under the empty name; each module once."""
    yield from _walk("", model, set())


def _walk(name: str, module: nn.Module, seen: set[int]) -> Iterator[tuple[str, nn.Module]]:
    module = unwrap(module)
    if id(module) in seen:
        return
    seen.add(id(module))
    yield name, module
    for child_name, child in module.named_children():
        yield from _walk(f"{name}.{child_name}" if name else child_name, child, seen)
