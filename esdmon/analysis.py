"""`analyze`: read every weight matrix of a model once.

The module has another name than the function because a submodule would take the place of `esdmon.analyze`.
"""

import os
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import replace

from esdmon.calls import explain_wrong_calls
from esdmon.options import choose_measures
from esdmon.plugins import Plugins
from esdmon.records import Report
from esdmon.runtime.reading.pool import Pool
from esdmon.runtime.reading.reader import Reader
from esdmon.weights import MIN_EIGENVALUES, Model, Selection, open_model, solve_lapack


@explain_wrong_calls
def analyze(
    model: Model | str | os.PathLike[str],
    *,
    layers: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    min_eigenvalues: int = MIN_EIGENVALUES,
    max_eigenvalues: int | None = None,
    reference: Model | str | os.PathLike[str] | None = None,
    measures: str | Sequence[str] = "default",
    precision: str = "auto",
    plugins: Iterable[object] = (),
    workers: str | int = "auto",
) -> Report:
    """Read every weight matrix of a model once.

    Args:
        model: a module, a mapping of names to tensors (2-D: linear, 4-D: convolution), or the path of a checkpoint,
            which is read tensor by tensor, as the module would be: a file of `torch.save` or safetensors, a folder of
            Hugging Face, DeepSpeed or accelerate, or one of torch's distributed checkpoints.
        layers: fnmatch patterns on the names of matrices; None for all but embeddings, output heads and routers, which
            are read where a pattern names them, and details such as `*/head.3`.
        exclude: patterns of those to leave out.
        min_eigenvalues: matrices with fewer, over all slices, are left out.
        max_eigenvalues: matrices with more are left out: what costs the most.
        reference: another state of the same model, in any of the forms above: W − W₀ is read instead of W.
        measures: "default", "all" (also those that need vectors, a shuffled copy or windows), or names.
        precision: "auto" (float32 where no verdict depends on it) or "exact" (float64).
        plugins: modules or objects with hooks, besides those that are installed.
        workers: processes that read side by side, on Linux, each on one core. "auto" is as many as there are cores,
            memory and work for, and none for what takes a few seconds; it counts 70 MB for each, and 32 bytes for each
            element of the largest weight, 96 where measures need more than eigenvalues. 1 reads in this process, in
            one thread.

    Returns:
        A `Report`: `print(report)` is a table, `report["fc1"].phase` a phase, `report.to_records()` JSON. Of a
        checkpoint `report.origins` has the files that were read, and what lies beside them in the folder.

    Raises:
        InputError: for a model without matrices, a pattern that matches none, an unknown measure or precision, a
            checkpoint that cannot be read, a number of workers below 1.

    >>> import torch
    >>> report = analyze(torch.nn.Sequential(torch.nn.Linear(256, 128)))
    >>> report["0"].phase.value
    'random-like'
    """
    known = Plugins(plugins)
    opened, origins = open_model(model)
    before, also = (None, ()) if reference is None else open_model(reference, is_reference=True)
    with closing(Pool(workers)) as pool:
        reader = Reader(
            opened,
            known,
            measures=choose_measures(measures, known.measures),
            selection=Selection(layers, exclude, min_eigenvalues, max_eigenvalues),
            reference=before,
            precision=precision,
            solver=solve_lapack,
            processes=pool.processes,
        )
        start = time.perf_counter()
        layers_read = list(pool.read(reader, [matrix.name for matrix in reader.matrices], step=0))
        report = reader.report(0, layers_read, time.perf_counter() - start)
        return replace(report, origins=(*origins, *also))
