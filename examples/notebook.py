# %% [markdown]
# # Looking at a run with esdmon
#
# A network learns digits while `esdmon.watch` reads the spectra of its weights. In mid-run weight decay is set far too
# strong. Then the run is read back from its file, and looked at.
#
# This notebook is made from `examples/notebook.py` by `examples/make_notebook.py`. It needs
# `pip install "esdmon[notebook,demo]"`.

# %%
import tempfile

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

import esdmon

torch.manual_seed(0)
data = load_digits()
images = torch.as_tensor(data.images, dtype=torch.float32).flatten(1)
images = (images - images.mean()) / images.std()
labels = torch.as_tensor(data.target)
model = nn.Sequential()
for name, width in (("fc1", 64), ("fc2", 128), ("fc3", 128)):
    model.add_module(name, nn.Linear(width, 128))
    model.add_module(f"relu_{name}", nn.ReLU())
model.add_module("head", nn.Linear(128, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)

# %% [markdown]
# ## Once, without training
#
# `analyze` returns a report. Alpha is in parentheses where there is no power law to fit: these weights are still noise,
# and the last layer is too small to have a phase.

# %%
esdmon.analyze(model)

# %% [markdown]
# ## While it trains
#
# One line, and the loop is as it was.

# %%
folder = tempfile.mkdtemp()
sinks = f"jsonl:{folder}/esdmon.jsonl"
with esdmon.watch(model, optimizer, every=20, sinks=sinks, budget=None, exclude=["head"]):
    for step in range(1, 701):
        if step == 241:
            optimizer.param_groups[0]["weight_decay"] = 0.1  # a slip: it should be 1e-4 or so
        batch = torch.randint(0, len(images), (32,))
        loss = functional.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

# %% [markdown]
# ## What happened
#
# `load` reads a run back, also one that is still training in another process.

# %%
run = esdmon.load(folder)
run

# %% [markdown]
# The phases of all layers over the steps. The triangles are the alerts; below, alpha where it is meaningful.

# %%
figure = run.plot()

# %% [markdown]
# The alerts, in words:

# %%
run.alerts[0]

# %% [markdown]
# ## A layer before and after
#
# Blue are the eigenvalues, red is the law of noise that fits their bulk and its edge λ⁺. At step 240 a few directions
# stand out of the noise. At the end the bulk of noise is gone, and only the tail is left.

# %%
axes = run.spectrum("fc2", step=240).plot()

# %%
axes = run.spectrum("fc2").plot()

# %%
run.spectrum("fc2")

# %% [markdown]
# ## As a table
#
# A row for each layer and reading, a column for each measure, and `…_null` for what pure noise would give.

# %%
frame = run.to_dataframe()
frame.pivot_table(index="step", columns="name", values="stable_rank").iloc[::5].round(1)
