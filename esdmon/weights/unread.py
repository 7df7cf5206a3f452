"""What is known of a model and cannot be read, in sentences for the log."""

from collections.abc import Collection

from esdmon.weights.discovery import Watched

_NAMED = 3


def unread(watched: Watched) -> list[str]:
    """Return one sentence for matrices that cannot be read, and one for modules whose weights could not be found."""
    whole = [matrix for matrix in watched.matrices if not matrix.detail]
    refused = {matrix.name: matrix.unreadable for matrix in whole if matrix.unreadable}
    sentences = []
    if refused:
        examples = "; ".join(f"{name}: {why}" for name, why in list(refused.items())[:_NAMED])
        rest = f"; and {len(refused) - _NAMED} more" if len(refused) > _NAMED else ""
        consequence = (
            "" if len(refused) < len(whole) else " No matrix is left to read; training goes on without readings."
        )
        sentences.append(
            f"{len(refused)} of {len(whole)} matrices are skipped, since they cannot be read ({examples}{rest})."
            f"{consequence}"
        )
    for why in dict.fromkeys(watched.failures.values()):
        modules = [name for name, reason in watched.failures.items() if reason == why]
        sentences.append(f"the weights of {_listed(modules)} could not be found, and are left out: {why}.")
    return sentences


def _listed(names: Collection[str]) -> str:
    rest = len(names) - _NAMED
    return ", ".join(list(names)[:_NAMED]) + (f" and {rest} more modules" if rest > 0 else "")
