"""A GPT of Megatron-Core whose weights are split by tensor parallel, on ranks of a CPU."""

import itertools
import json
import logging
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

import esdmon
from esdmon.errors import InputError
from esdmon.trainers.optimizers import readable
from tests.ranks import results_in, torchrun
from tests.runtime.ranks.sharded_jobs import Training, check_read, check_undisturbed, train_twice

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
pytest.importorskip("megatron.core", reason="Megatron-Core has packages for Linux only")
STEPS = 6
TOKENS, WIDTH, HEADS = 128, 64, 4
LAYERS = ["*", "*/qk", "*/ov"]
GROUPED = {"num_moe_experts": 3, "moe_grouped_gemm": True, "moe_use_legacy_grouped_gemm": True}
WAYS: dict[str, tuple[int, dict[str, Any]]] = {
    "a gate, shared heads": (2, {"gated_linear_unit": True, "num_query_groups": 2}),
    "biases, a head each": (2, {"gated_linear_unit": False, "num_query_groups": HEADS, "add_bias_linear": True}),
    "before 0.16": (2, {"gated_linear_unit": True, "num_query_groups": 2}),
    "not initialised": (2, {"gated_linear_unit": True, "num_query_groups": 2, "perform_initialization": False}),
    "a gate on attention": (2, {"gated_linear_unit": True, "num_query_groups": 2, "attention_output_gate": True}),
    "experts": (2, {"gated_linear_unit": True, "num_query_groups": 2, "num_moe_experts": 3}),
    "grouped experts": (2, {"gated_linear_unit": True, "num_query_groups": 2, **GROUPED}),
    "more ranks than heads of k": (4, {"gated_linear_unit": True, "num_query_groups": 2}),
    "replicas": (2, {"gated_linear_unit": True, "num_query_groups": 2}),
}
"""Ranks that share a weight, and the configuration; a job of four ranks has the last two."""


class Attention(nn.Module):
    """Scaled products by torch: Megatron's own allocate on CUDA."""

    def __init__(self, **_: Any) -> None:
        super().__init__()

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        q, k, v = (each.permute(1, 2, 0, 3) for each in (query, key, value))
        k, v = (each.repeat_interleave(q.shape[1] // each.shape[1], 1) for each in (k, v))
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return out.permute(2, 0, 1, 3).reshape(*query.shape[:2], -1)


def network(way: str, ranks: int, *, stages: int = 1) -> Any:
    """This rank's part of a GPT of two layers for each pipeline stage, the same weights on any number of ranks."""
    from megatron.core import parallel_state
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer.moe import grouped_gemm_util
    from megatron.core.transformer.transformer_config import TransformerConfig

    grouped_gemm_util.assert_grouped_gemm_is_available = lambda: None  # of CUDA, for the product alone
    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=ranks, pipeline_model_parallel_size=stages)
    own = {"add_bias_linear": False} | WAYS[way][1]
    config = TransformerConfig(
        num_layers=2 * stages,
        pipeline_model_parallel_size=stages,
        pipeline_dtype=torch.float32,
        hidden_size=WIDTH,
        ffn_hidden_size=96,
        num_attention_heads=HEADS,
        tensor_model_parallel_size=ranks,
        use_cpu_initialization=True,
        activation_func=functional.silu if own["gated_linear_unit"] else functional.gelu,
        normalization="RMSNorm",
        hidden_dropout=0.0,
        bias_dropout_fusion=False,
        gradient_accumulation_fusion=False,
        **({"moe_token_dispatcher_type": "allgather"} | own),
    )
    torch.manual_seed(0)
    grouped = bool(own.get("moe_grouped_gemm"))
    spec = get_gpt_layer_local_spec(own.get("num_moe_experts"), moe_grouped_gemm=grouped, normalization="RMSNorm")
    spec.submodules.self_attention.submodules.core_attention = Attention
    ends = {
        "pre_process": parallel_state.is_pipeline_first_stage(),
        "post_process": parallel_state.is_pipeline_last_stage(),
    }
    model = GPTModel(config, spec, TOKENS, 32, position_embedding_type="rope", **ends)
    if way == "before 0.16":  # which does not mark gate and up-projection as two blocks
        for name, weight in model.named_parameters():
            if "linear_fc1" in name:
                weight.partition_stride = 1
    if not config.perform_initialization:
        torch.manual_seed(distributed.get_rank())
        for weight in model.parameters():  # norms are initialised in any case
            if weight.ndim == 2:
                nn.init.normal_(weight, std=0.02)
    model.layers = LAYERS  # for `reading_of`
    return model


def gathered(way: str, model: Any) -> dict[str, Tensor]:
    """All weights, whole, by collectives, as Megatron's documentation says that they are split."""
    from megatron.core import parallel_state

    group = parallel_state.get_tensor_model_parallel_group()
    is_gated = WAYS[way][1]["gated_linear_unit"]
    whole = {}
    for name, weight in model.named_parameters():
        parts = [torch.empty_like(weight) for _ in range(WAYS[way][0])]
        distributed.all_gather(parts, weight.detach().contiguous(), group=group)
        if "norm" in name or "router" in name or name.endswith(("linear_proj.bias", "linear_fc2.bias")):
            whole[name] = parts[0]
        elif "experts.weight1" in name:  # (experts, inputs, gate and up) in memory
            experts = [part.view(3, WIDTH, 2, -1) for part in parts]
            whole[name] = torch.cat(experts, dim=3).reshape(WIDTH, -1)
        elif "experts.weight2" in name:
            whole[name] = torch.cat([part.view(3, -1, WIDTH) for part in parts], dim=1).reshape(-1, WIDTH)
        elif "linear_fc1" in name and is_gated:
            halves = [part.chunk(2) for part in parts]
            whole[name] = torch.cat([half[side] for side in (0, 1) for half in halves])
        else:
            is_by_inputs = name.endswith(("linear_proj.weight", "linear_fc2.weight"))
            whole[name] = torch.cat(parts, dim=1 if is_by_inputs else 0)
    return whole


def loss_of(model: Any, step: int) -> Tensor:
    ids = torch.randint(0, TOKENS, (2, 16), generator=torch.Generator().manual_seed(step))
    mask = torch.ones(16, 16, dtype=torch.bool).triu(1)[None, None]
    loss: Tensor = model(ids, torch.arange(16).expand(2, -1), mask, labels=ids.roll(-1, 1)).mean()
    return loss


def backward(model: Any, step: int) -> float:
    """Of experts, whose training on several ranks needs norms on CUDA, a gradient that is the same on all."""
    if model.config.num_moe_experts is None:
        loss: Any = loss_of(model, step)
        loss.backward()
        return float(loss)
    for weight in model.parameters():
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(step))
    return math.nan


def begin(way: str) -> Training:
    model = network(way, WAYS[way][0])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    steps = itertools.count(1)

    def step() -> float:
        optimizer.zero_grad()
        loss = backward(model, next(steps))
        optimizer.step()
        return loss

    return Training(model, step, lambda: gathered(way, model))


def train(way: str) -> dict[str, Any]:
    """What was read, and how it differs from readings of the whole model, which has the same losses."""
    trained = train_twice(partial(begin, way), STEPS, layers=LAYERS)
    whole = network(way, 1)
    return trained.compared(whole) | {"whole": whole_losses(way, whole, trained.states)}


def whole_losses(way: str, whole: Any, states: dict[int, dict[str, Tensor]]) -> list[float]:
    """The losses of the gathered model."""
    losses = []
    for step in range(1, STEPS) if "num_moe_experts" not in WAYS[way][1] else ():
        whole.load_state_dict(states[step], strict=False)
        losses.append(loss_of(whole, step + 1).item())
    return losses


def check_wrapped() -> None:
    """What Megatron wraps a model in does not change the names of its weights."""
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.transformer.module import Float16Module

    model = network("replicas", 2)
    names = [layer.name for layer in esdmon.analyze(model)]
    model.config.bf16 = True
    half = Float16Module(model.config, model)
    wrapped = DistributedDataParallel(model.config, DistributedDataParallelConfig(), half)
    assert [layer.name for layer in esdmon.analyze(wrapped)] == names
    assert "embedding.word_embeddings" not in names  # on request


def check_stages() -> None:
    """A layer has its number in the whole model, and not in its pipeline stage."""
    model = network("replicas", 1, stages=2)
    first = distributed.get_rank() * 2
    layers = {layer.name.split(".")[2] for layer in esdmon.analyze(model) if "layers" in layer.name}
    assert layers == {str(first), str(first + 1)}


def rank_of_a_job(folder: str, ways: tuple[str, ...]) -> None:
    torch.cuda.current_device = lambda: "cpu"  # type: ignore[assignment,return-value]  # where Megatron allocates
    torch.cuda.current_stream = lambda *_: None  # type: ignore[assignment]
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    logging.basicConfig(filename=f"{folder}/log-{rank}")
    check_wrapped()
    if distributed.get_world_size() == 2:
        check_stages()
    Path(f"{folder}/result-{rank}.json").write_text(json.dumps({way: train(way) for way in ways}))
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 4])
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results of each rank by way."""
    folder, size = tmp_path_factory.mktemp("job"), request.param
    torchrun(rank_of_a_job, str(folder), tuple(WAYS)[-2:] if size == 4 else tuple(WAYS)[:-2], ranks=size)
    log = (folder / "log-0").read_text()
    assert "WARNING:esdmon" not in log, log
    return results_in(folder, size)


def test_readings_are_those_of_the_whole_model(results: list[dict[str, Any]]) -> None:
    """Which has the losses of the one that is split, so that its weights are known to be in their order."""
    check_read(results[0])
    for way, result in results[0].items():
        assert result["whole"] == pytest.approx(result["losses"][1:][: len(result["whole"])], rel=1e-4), way
        assert {f"decoder.layers.1.self_attention.linear_qkv/{letter}" for letter in "qkv"} <= set(result["names"])


def test_no_rank_is_disturbed(results: list[dict[str, Any]]) -> None:
    check_undisturbed(results)


def test_its_optimizers_are_refused() -> None:
    """They write the weights when the optimizer inside them has stepped; the hook of that one is called before."""
    from megatron.core.optimizer.optimizer import ChainedOptimizer, Float16OptimizerWithFloat16Params

    model = nn.Linear(32, 32)
    master = nn.Parameter(model.weight.detach().clone())
    inner = torch.optim.AdamW([master])
    mixed = object.__new__(Float16OptimizerWithFloat16Params)  # its `__init__` allocates on CUDA
    mixed.optimizer = inner
    for given in (mixed, ChainedOptimizer([mixed]), [ChainedOptimizer([mixed, mixed])]):
        with pytest.raises(InputError, match=r"one of Megatron.*Leave it out, and call monitor\.step\(\) after each"):
            esdmon.watch(model, given, sinks=None)
    assert readable(mixed) is None  # what it holds is not the model's
    vars(model.weight)["main_param"] = master  # as Megatron marks it
    with pytest.raises(InputError, match="or the one inside it: weights are written after its step"):
        esdmon.watch(model, inner, sinks=None)
