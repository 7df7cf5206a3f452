"""Describe for the log the weights of a model that cannot be read."""

from collections.abc import Mapping

from esdmon.records.text import named
from esdmon.weights.discovery import Watched

_MAX_NAMED = 3  # layers in one sentence


def describe_unreadable(watched: Watched) -> list[str]:
    """Return a sentence on matrices that cannot be read, and one for each error in the search of modules.

    Matrices that are only too small, or of another kind of number, are described where no other is left.
    """
    sentences = [_on_modules(why, watched.failures) for why in dict.fromkeys(watched.failures.values())]
    wholes = [matrix for matrix in watched.matrices if not matrix.detail]
    reasons = {matrix.name: matrix.unreadable for matrix in wholes if matrix.unreadable}
    if reasons:
        sentences.insert(0, _on_matrices(reasons, len(wholes)))
    elif wholes and not watched.coverage.watched:
        coverage = "\n".join(watched.coverage.lines)
        sentences.insert(0, f"no matrix can be read; training continues without readings: {coverage}")
    return sentences


def _on_matrices(reasons: Mapping[str, str], total: int) -> str:
    examples = [f"{name}: {why}" for name, why in list(reasons.items())[:_MAX_NAMED]]
    if len(reasons) > _MAX_NAMED:
        examples.append(f"and {len(reasons) - _MAX_NAMED} more")
    sentence = f"{len(reasons)} of {total} matrices are skipped because they cannot be read ({'; '.join(examples)})."
    if len(reasons) == total:
        sentence += " No matrix is left to read; training continues without readings."
    return sentence


def _on_modules(why: str, failures: Mapping[str, str]) -> str:
    modules = named(name for name, reason in failures.items() if reason == why)
    return f"the search for weights raised {why} in {modules}. Their weights are not read."
