"""The modules of a model under the names that its author gave them.

Wrappers rename what they hold (`_orig_mod.fc1`, `module.fc1`). They are known by their type and looked through at any
depth; names are never cut by their spelling, since a user's own module may be called `module`.
"""

from collections.abc import Iterator

from torch import nn

# By package and class name: importing these classes would load dynamo, the distributed package, or peft.
_INNER = {
    ("torch", "OptimizedModule"): "_orig_mod",  # torch.compile
    ("torch", "DataParallel"): "module",
    ("torch", "DistributedDataParallel"): "module",
    ("torch", "AveragedModel"): "module",
    ("torch", "FullyShardedDataParallel"): "_fsdp_wrapped_module",
    ("torch", "CheckpointWrapper"): "_checkpoint_wrapped_module",
    # A model that Fabric has set up; each of Lightning's packages has a class of its own.
    ("lightning", "_FabricModule"): "_forward_module",
    ("lightning_fabric", "_FabricModule"): "_forward_module",
    ("pytorch_lightning", "_FabricModule"): "_forward_module",
    ("peft", "PeftModel"): "base_model",
    ("peft", "BaseTuner"): "model",
}


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside the wrappers around it."""
    while True:
        kinds = ((kind.__module__.partition(".")[0], kind.__name__) for kind in type(module).__mro__)
        attribute = next((_INNER[kind] for kind in kinds if kind in _INNER), None)
        inner = None if attribute is None else getattr(module, attribute, None)
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def named_modules(model: nn.Module, *, every_name: bool = False) -> Iterator[tuple[str, nn.Module]]:
    """(canonical name, module), the model itself first under the empty name; each module once, or by every name."""
    yield from _walk("", model, None if every_name else set())


def _walk(name: str, module: nn.Module, seen: set[int] | None) -> Iterator[tuple[str, nn.Module]]:
    module = unwrap(module)
    if seen is not None:
        if id(module) in seen:
            return
        seen.add(id(module))
    yield name, module
    for child_name, child in module._modules.items():  # noqa: SLF001 -- named_children() gives each child one name
        if child is not None:
            yield from _walk(_join(name, child_name, module), child, seen)


def _join(name: str, child_name: str, module: nn.Module) -> str:
    """A child's name; the layer that an adapter of peft stands before keeps the name that it had."""
    if child_name == "base_layer" and type(module).__module__.startswith("peft."):
        return name
    return f"{name}.{child_name}" if name else child_name
