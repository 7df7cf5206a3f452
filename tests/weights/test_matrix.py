"""The size of a matrix is computed once for each shape of its weight."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import esdmon
from esdmon.weights import Matrix, UnreadableError, stacks

N_LAYERS = 20


class Counted:
    """Converts a weight to a stack, and counts the calls on the meta device, by which sizes are computed."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, weight: Tensor) -> Tensor:
        """Count, and convert."""
        self.calls += weight.device.type == "meta"
        return stacks.linear(weight)


def test_a_size_is_computed_once_for_each_shape() -> None:
    """The same object means the same shape, also where the weight goes back to an earlier one."""
    layer, to_stack = nn.Linear(30, 20), Counted()
    matrix = Matrix("w", lambda: layer.weight, to_stack)
    first = matrix.size()
    assert (first.shape, first.n_elements, first.n_eigenvalues) == ((1, 20, 30), 600, 20)
    assert matrix.size() is first
    assert matrix.size_for(layer.weight) is first
    layer.weight.data = torch.ones(10, 5)
    assert matrix.stack_shape() == (1, 10, 5)
    layer.weight.data = torch.ones(20, 30)
    assert matrix.size() is first
    assert to_stack.calls == 2


def test_what_is_not_a_tensor_has_no_size() -> None:
    """A module may hold anything under the name of its weight."""
    matrix = Matrix("w", lambda: None, stacks.linear)  # type: ignore[arg-type,return-value]
    with pytest.raises(UnreadableError, match="its weight is None, not a tensor"):
        matrix.size()


class CountingExtractor:
    """A plugin whose handles count how often their sizes are computed."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    @esdmon.hookimpl
    def esdmon_extract_matrices(self, name: str, module: nn.Module) -> list[Matrix] | None:
        if not isinstance(module, nn.Linear):
            return None
        return [Matrix(name, lambda: module.weight, self._counting(name))]

    def _counting(self, name: str) -> Callable[[Tensor], Tensor]:
        def to_stack(weight: Tensor) -> Tensor:
            self.calls[name] += weight.device.type == "meta"
            return stacks.linear(weight)

        return to_stack


@pytest.mark.parametrize("mode", ["sync", "thread"])
def test_no_size_is_computed_at_a_due_step(mode: str) -> None:
    """Unless a weight has another shape: then once, and the record has the new number of parameters."""
    model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(N_LAYERS)))
    extractor = CountingExtractor()
    with esdmon.watch(model, every=1, budget=None, sinks=None, mode=mode, plugins=[extractor], strict=True) as monitor:
        extractor.calls.clear()
        for _ in range(3):
            monitor.step()
        assert extractor.calls.total() == 0
        model.get_parameter("3.weight").data = torch.randn(16, 12)
        for _ in range(3):
            monitor.step()
    assert +extractor.calls == {"3": 1}
    assert monitor.report is not None
    assert {layer.n_parameters for layer in monitor.report if layer.name != "3"} == {256}
    assert monitor.report["3"].n_parameters == 192
