"""Define `analyze`, which reads every weight matrix of a model once.

The module is not named `analyze`, because a submodule of this name would replace the function `esdmon.analyze`.
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
from esdmon.runtime.reading.options import ReadingOptions
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
        model: a module, a mapping of names to tensors (2-D: linear, 4-D: convolution), or the path of a checkpoint: a
            file of `torch.save` or safetensors, a folder of Hugging Face, DeepSpeed or accelerate, or a distributed
            checkpoint of torch. A checkpoint is read tensor by tensor, and gives the same layers as its module.
        layers: fnmatch patterns on the names of matrices; None for all but embeddings, output heads, routers and
            details such as `*/head.3`. A pattern that matches these reads them.
        exclude: fnmatch patterns of matrices to leave out.
        min_eigenvalues: leave out matrices with fewer eigenvalues, counted over all slices.
        max_eigenvalues: leave out matrices with more eigenvalues; these cost the most.
        reference: a model or checkpoint with W₀, in any of the forms above. W − W₀ is read instead of W.
        measures: "default", "all" (also those that need vectors, a shuffled copy or windows), or names.
        precision: "auto" (float32 if no verdict depends on the difference) or "exact" (float64).
        plugins: modules or objects with hooks, besides the installed ones.
        workers: number of processes that read in parallel, on Linux, each on one core. "auto": as many as cores, memory
            and work allow, and none for a model that is read in a few seconds. It counts 70 MB for each process, and 32
            bytes for each element of the largest weight, or 96 if measures need more than eigenvalues. 1: read in this
            process, in one thread.

    Returns:
        A `Report`: `print(report)` shows a table, `report["fc1"].phase` is a phase, `report.to_records()` gives JSON
        objects. For a checkpoint, `report.origins` has the files that were read, and other weights in the same folder.

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
        options = ReadingOptions(
            choose_measures(measures, known.measures),
            selection=Selection(layers, exclude, min_eigenvalues, max_eigenvalues),
            reference=before,
            precision=precision,
            solver=solve_lapack,
            processes=pool.processes,
        )
        reader = Reader(opened, known, options)
        start = time.perf_counter()
        layers_read = list(pool.read(reader, [matrix.name for matrix in reader.matrices], step=0))
        report = reader.report(0, layers_read, time.perf_counter() - start)
        return replace(report, origins=(*origins, *also))
