"""The experiments of Martin & Mahoney, "Implicit self-regularization in deep neural networks" (2021), run again.

`python -m examples.paper --quick` shows the main finding in some minutes on two cores; `--full` runs all of them.
"""
