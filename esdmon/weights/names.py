"""Iterate over the modules of a model under the names that its author gave them.

Wrappers add prefixes to names (`_orig_mod.fc1`, `module.fc1`). Wrappers are recognised by their type, at any depth, and
their prefixes are removed. The spelling of a prefix is not used, since a user's own module may be called `module`.
"""

from collections.abc import Iterator

from torch import nn

from esdmon.encoding import storable
from esdmon.weights.torch_private import children_of, parameters_of

# By package and class name: importing these classes would load dynamo, the distributed package, or peft.
_INNER_ATTRIBUTES = {
    ("torch", "OptimizedModule"): "_orig_mod",  # torch.compile
    ("torch", "DataParallel"): "module",
    ("torch", "DistributedDataParallel"): "module",
    ("torch", "AveragedModel"): "module",
    ("torch", "FullyShardedDataParallel"): "_fsdp_wrapped_module",
    ("torch", "CheckpointWrapper"): "_checkpoint_wrapped_module",
    # A model that Fabric has set up; each of Lightning's packages has its own class.
    ("lightning", "_FabricModule"): "_forward_module",
    ("lightning_fabric", "_FabricModule"): "_forward_module",
    ("pytorch_lightning", "_FabricModule"): "_forward_module",
    ("deepspeed", "DeepSpeedEngine"): "module",
    ("megatron", "DistributedDataParallel"): "module",
    ("megatron", "Float16Module"): "module",
    ("opacus", "AbstractGradSampleModule"): "_module",
    ("peft", "PeftModel"): "base_model",
    ("peft", "BaseTuner"): "model",
    ("peft", "AdaptionPromptModel"): "model",
}
PROMPT = "adaption_prompt"
"""The parameter that peft's LLaMA-Adapter adds to an attention layer, in a wrapper whose child `model` is the layer."""
_KERAS_VARIABLES = "_torch_params"
"""The dictionary of a layer of Keras with its variables and those of all layers inside it, by their paths."""


def unwrap(module: nn.Module) -> nn.Module:
    """Return the module inside the wrappers around it."""
    while True:
        kinds = ((kind.__module__.partition(".")[0], kind.__name__) for kind in type(module).__mro__)
        attribute = next((_INNER_ATTRIBUTES[kind] for kind in kinds if kind in _INNER_ATTRIBUTES), None)
        if attribute is None:
            return module
        # As a child: DeepSpeed's engine has it as an ordinary attribute too, which an outline does not replace.
        inner = children_of(module).get(attribute)
        if inner is None:
            inner = getattr(module, attribute, None)
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def named_modules(model: nn.Module, *, every_name: bool = False) -> Iterator[tuple[str, nn.Module]]:
    """Iterate over (canonical name, module), beginning with the model itself under the empty name.

    Args:
        model: the model, in wrappers or not.
        every_name: give a shared module once under each of its names; by default only under the first.
    """
    yield from _walk("", model, set(), None, every_name=every_name)


def _walk(
    name: str, module: nn.Module, seen: set[int], keras: str | None, *, every_name: bool
) -> Iterator[tuple[str, nn.Module]]:
    """Iterate as `named_modules` does; for a model of Keras, track the name of the outermost layer around this one."""
    module = unwrap(module)
    if id(module) in seen:
        return
    seen.add(id(module))
    yield name, module
    if keras is None and any(kind.__module__.partition(".")[0] == "keras" for kind in type(module).__mro__):
        keras = name
    for attribute, child in children_of(module).items():
        if child is not None:
            of_keras = keras if attribute == _KERAS_VARIABLES else None
            child_name, inner = _named_child(name, attribute, child, module)
            yield from _walk(child_name if of_keras is None else of_keras, inner, seen, keras, every_name=every_name)
    if every_name:  # only modules around this one stay excluded: one that has its parent as a child would never end
        seen.remove(id(module))


def _named_child(name: str, attribute: str, child: nn.Module, module: nn.Module) -> tuple[str, nn.Module]:
    """Return a child with its name.

    A layer that peft has wrapped in an adapter, or in prompts, keeps the name of the wrapper. So does the only copy
    that peft trains in the place of a layer (`modules_to_save`), as in the file of the adapter; the layer itself is
    `….original_module`. A layer of Megatron has its number in the whole model, as in Megatron's checkpoints: each
    pipeline stage counts its own from 0.
    """
    attribute = storable(attribute)
    number = vars(child).get("layer_number")
    if isinstance(number, int) and attribute.isdecimal() and type(child).__module__.startswith("megatron."):
        attribute = str(number - 1)
    if type(module).__module__.startswith("peft."):
        if attribute == "base_layer" or (attribute == "model" and PROMPT in parameters_of(module)):
            return name, child
        copies = [*children_of(child).values()] if attribute == "modules_to_save" else []
        if len(copies) == 1 and copies[0] is not None:
            return name, copies[0]
    return f"{name}.{attribute}" if name else attribute, child
