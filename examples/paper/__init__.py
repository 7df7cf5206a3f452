"""The experiments of Martin & Mahoney, "Implicit self-regularization in deep neural networks" (2021), reproduced.

`python -m examples.paper --quick` reproduces the main finding within 15 minutes on two cores; `--full` runs all
experiments.
"""
