"""Make `examples/notebook.ipynb` of `examples/notebook.py`: split it into cells, run them, and keep what they show.

    python -m pip install nbclient ipykernel
    python examples/make_notebook.py

Cells begin with `# %%`, those of text with `# %% [markdown]`.
"""

import argparse
import re
from pathlib import Path

HERE = Path(__file__).parent


def cells(script: str) -> list[tuple[str, str]]:
    """Return the cells of a script, each with its kind: `markdown` or `code`."""
    found = []
    for cell in re.split(r"^# %%", script, flags=re.MULTILINE)[1:]:
        kind, _, source = cell.partition("\n")
        if kind.strip() == "[markdown]":
            found.append(("markdown", re.sub(r"^# ?", "", source.strip(), flags=re.MULTILINE)))
        else:
            found.append(("code", source.strip()))
    return found


def main() -> None:
    """Run the cells in the folder of the examples, and write the notebook."""
    import nbclient  # noqa: PLC0415 -- needed here only
    import nbformat  # noqa: PLC0415

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=HERE / "notebook.ipynb")
    options = parser.parse_args()
    kinds = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
    script = cells((HERE / "notebook.py").read_text(encoding="utf-8"))
    notebook = nbformat.v4.new_notebook(cells=[kinds[kind](source) for kind, source in script])
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # otherwise random, and each run a change
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(HERE)}}).execute()
    for cell in notebook.cells:
        cell.metadata = {}  # times of execution
    nbformat.write(notebook, options.out)
    print(f"{options.out}: {len(notebook.cells)} cells, {options.out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
