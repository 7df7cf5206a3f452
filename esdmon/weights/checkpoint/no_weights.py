"""Describe a file of torch or pickle that has no weights of a model, and say what to do."""

import re

from esdmon.weights.checkpoint.containers import has_call, has_optimizer, is_script
from esdmon.weights.checkpoint.pickled import Call, everything
from esdmon.weights.checkpoint.stored import is_tensor

_NUMPY = re.compile(r"numpy\.(_core|core)\.(multiarray\._reconstruct|numeric\._frombuffer)")


def why_nothing(content: object) -> str:
    """Return what a file contains in the place of weights."""
    if is_script(content):
        return "is a program of TorchScript that is frozen, so that its weights have no names. Save its state_dict()"
    owner = _object_with_tensors(content)
    if owner:
        return refusal(owner)
    if has_optimizer(content):
        return "contains the state of an optimizer alone: pass the file with the model"
    if isinstance(content, Call) and isinstance(content.state, dict):
        return f"contains an object ({content.name}) without tensors. Its weights are in another file"
    if has_call(content, _NUMPY):
        return "contains arrays of numpy in the place of tensors: convert them with torch.from_numpy"
    return f"contains no named tensors{_kind(content)}"


def _kind(content: object) -> str:
    """Return what is in a file in the place of tensors."""
    if isinstance(content, dict) and content:
        return f"; its keys are {', '.join(str(key)[:40] for key in list(content)[:8])}"
    kinds: dict[type, str] = {dict: ", but an empty dict", list: ", but a list", tuple: ", but a tuple"}
    return f"{kinds.get(type(content), '')}. Save the state_dict() of a model"


def refusal(name: str) -> str:
    """Return why a file is refused that contains an object of this name."""
    return (
        f"is refused: it contains Python objects ({name}) besides named tensors, and loading those runs code. "
        "Save the model's state_dict() alone"
    )


def _object_with_tensors(content: object) -> str:
    """Return the class of the first object with tensors in a tree; empty without one."""
    for value in everything(content):
        if isinstance(value, Call) and any(map(is_tensor, everything([value.state, value.items, value.arguments]))):
            return value.name
    return ""
