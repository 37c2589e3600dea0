"""Several processes, launched by torchrun: the scripts of `tests/distributed`, and what is to hold.

Two processes run all scripts in one launch, but the one that breaks process groups; four run one.
Whichever test comes first launches them, once for all workers of pytest.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tables import METHODS
from torch import nn
from torchrun import launched, read

import flatmin
from distributed import checkpoint, equality, failing, local, sharding, trouble
from distributed.common import SOME

pytestmark = [
    pytest.mark.skipif(
        not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
        reason="this torch was built without gloo",
    ),
    # What one process leaves to two, and takes up from them, is written and read alone.
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninit"),
]


@dataclass(frozen=True)
class Found:
    """What each rank has found, by the script and the key of the scenario."""

    folder: Path
    ranks: int

    def of(self, script: str) -> list[dict[str, Any]]:
        names = [f"{script}-{rank}.json" for rank in range(self.ranks)]
        return [json.loads(path.read_text()) for path in read(self.folder, names)]

    def at(self, script: str, key: str) -> list[Any]:
        """What the ranks have found there."""
        found = [values[key] for values in self.of(script)]
        for rank, value in enumerate(found):
            if isinstance(value, dict) and "error" in value:
                pytest.fail(f"rank {rank}: {value['error']}")
        return found

    def alike(self, script: str, key: str) -> Any:
        """What all of them have found there."""
        first, *others = self.at(script, key)
        assert all(other == first for other in others), [first, *others]
        return first


@pytest.fixture(scope="session")
def two(request: pytest.FixtureRequest) -> Found:
    def prepare(folder: Path) -> None:
        for method in SOME:
            checkpoint.leave(method, "alone", folder / f"from one, {method}")

    return Found(launched(request, "distributed/two.py", 2, prepare), 2)


@pytest.fixture(scope="session")
def broken(request: pytest.FixtureRequest) -> Found:
    return Found(launched(request, "distributed/failing.py", 2), 2)


@pytest.fixture(scope="session")
def four(request: pytest.FixtureRequest) -> Found:
    return Found(launched(request, "distributed/sharding.py", 4), 4)


# --- global ascent: two processes equal one on the joined batch


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_equal_one_in_float64(method: str, two: Found):
    for wrapping in equality.wrappings(method):
        for found in two.at("equality", f"{method}, {wrapping}, float64"):
            assert found["of the way"] < 1e-10, wrapping


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_equal_one_in_float32(method: str, two: Found):
    # What LookSAM reuses is a difference of two gradients that are nearly equal: rounding counts
    # tenfold. Lookbehind takes five base steps in one, five times as far.
    limit = 1e-5 if "look" in method else 1e-6
    for wrapping in ("ddp", "fsdp") if method in SOME else ("ddp",):
        for found in two.at("equality", f"{method}, {wrapping}, float32"):
            assert found["deviation"] < limit, wrapping


@pytest.mark.parametrize("method", METHODS)
def test_ranks_hold_the_same_bits_and_decide_alike_after_each_step(method: str, two: Found):
    for wrapping in equality.wrappings(method):
        first, second = two.at("equality", f"{method}, {wrapping}, float64")
        assert len(first["steps"]) == equality.STEPS
        assert first["steps"] == second["steps"], wrapping
        assert first["same counts"], wrapping
        assert first["same storage"], wrapping
        assert second["same storage"], wrapping


def test_the_policies_have_taken_both_branches(two: Found):
    for method in ("ae-sam", "ss-sam", "look-sam", "ae-friendly-sam", "ae-look-sam", "late-sam"):
        found = two.at("equality", f"{method}, ddp with views, float64")[0]
        assert 0 < found["perturbed"] < equality.STEPS, method


@pytest.mark.parametrize("wrapping", ["ddp with views", "fsdp without resharding"])
@pytest.mark.parametrize("method", SOME)
def test_a_clipped_adamw_sees_the_norm_over_all_ranks(method: str, wrapping: str, two: Found):
    for found in two.at("equality", f"{method}, {wrapping}, clipped AdamW"):
        assert found["of the way"] < 1e-10
        assert found["same counts"]  # among them the radius that was travelled


# --- local ascent: each rank climbs its own


@pytest.mark.parametrize("method", METHODS)
def test_local_ascent_leaves_the_ranks_equal_bit_for_bit(method: str, two: Found):
    for wrapping in ("ddp", "ddp with views") if method in SOME else ("ddp with views",):
        first, second = two.at("local", f"equal, {method}, {wrapping}")
        assert len(first["steps"]) == local.STEPS
        assert first == second, wrapping


@pytest.mark.parametrize("method", METHODS)
def test_ranks_are_silent_while_they_climb(method: str, two: Found):
    """Reductions of gradients in each pass of each step; there is one bucket."""
    found = two.alike("local", f"equal, {method}, ddp with views")
    assert len(found["talk"]) == local.STEPS
    for reductions in found["talk"]:
        if method == "lookbehind-sam":  # it climbs on along gradients that it also descends
            assert reductions == [0, 1, 1, 1, 1, 1]
        elif len(reductions) > 1:
            assert reductions == [0] * (len(reductions) - 1) + [1]
        else:  # not perturbed; where the policy must look first, it looks in silence
            assert reductions in ([0], [1])
            assert (reductions == [0]) == (method.startswith("ae-"))


def test_no_collective_at_all_runs_in_a_pass_that_climbs(two: Found):
    reduction = ["c10d::allreduce_", "gloo:all_reduce"]
    assert two.alike("local", "collectives, sam") == [[], reduction]
    assert two.alike("local", "collectives, agnostic-sam") == [[], [], [], reduction]


@pytest.mark.parametrize("method", local.ONE_GRADIENT)
def test_a_step_of_one_gradient_sends_no_more_than_its_base(method: str, two: Found):
    """What it keeps is made of gradients that the ranks have reduced already."""
    ours, base = (two.alike("local", f"whole step, {name}") for name in (method, "sgd"))
    assert ours == base


def test_a_model_with_batchnorm_brings_its_statistics_along_once_a_step(two: Found):
    """DDP broadcasts buffers before the first forward pass after a reduction; that is not ours."""
    for method, passes in (("sam", 2), ("agnostic-sam", 4)):
        said = two.alike("local", f"collectives with statistics, {method}")
        assert len(said) == passes
        assert said[0] == ["c10d::broadcast_", "gloo:broadcast"]
        assert said[1:-1] == [[]] * (passes - 2)


@pytest.mark.parametrize("ascent", ["global", "local"])
@pytest.mark.parametrize("method", METHODS)
def test_with_the_defaults_of_ddp_a_step_is_one_visit_to_the_model(
    method: str, ascent: str, two: Found
):
    """Also to buffers, which DDP broadcasts before each pass."""
    for found in two.at("buffers", f"{method} {ascent}"):
        assert found["wrong"] == []
        assert found["alike"]
        assert found["samples"] >= 3 * 12


def test_with_the_defaults_of_ddp_sam_is_sam_by_hand(two: Found):
    (ours, *_), (hand, *_) = two.at("buffers", "sam global"), two.at("buffers", "by hand")
    assert ours["norm"] == pytest.approx(hand["norm"], rel=1e-12)


@pytest.mark.parametrize("method", list(local.BY_HAND))
def test_local_ascent_equals_the_hand_computation(method: str, two: Found):
    for found in two.at("local", f"hand, {method}"):
        assert found["of the way"] < 1e-9
        assert found["perturbed"] or method == "sgd"


@pytest.mark.parametrize("method", SOME)
def test_local_ascent_is_another_method_than_global_ascent(method: str, two: Found):
    assert min(two.at("local", f"globally, {method}")) > 1e-4


@pytest.mark.parametrize("method", [*SOME, "esam"])
def test_a_loop_of_ones_own_does_what_step_does(method: str, two: Found):
    for ascent in ("local", "global") if method in SOME else ("local",):
        found = two.alike("local", f"passes, {method}, {ascent}")
        assert found["same"]
        assert bool(found["silent"]) == (ascent == "local")


# --- shards of other kinds

LAYOUTS = [(name, "two") for name in sharding.LAYOUTS] + [(name, "four") for name in sharding.FOUR]


def of_layout(request: pytest.FixtureRequest, processes: str, key: str) -> list[Any]:
    script = {"two": "sharding", "four": "four"}[processes]
    return request.getfixturevalue(processes).at(script, key)


@pytest.mark.parametrize("name, processes", LAYOUTS)
def test_norms_go_over_all_shards_once(name: str, processes: str, request: Any):
    for lengths in of_layout(request, processes, f"norms, {name}"):
        for ours, expected in lengths:
            assert ours == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name, processes", LAYOUTS)
def test_layouts_equal_one_process(name: str, processes: str, request: Any):
    for method in SOME[:4] if processes == "two" else sharding.OF_FOUR:
        for found in of_layout(request, processes, f"{name}, {method}"):
            assert found["of the way"] < 1e-10, method
            assert found["perturbed"][0] == found["perturbed"][1] > 0
            assert found["radius"][0] == pytest.approx(found["radius"][1], rel=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_tensor_parallelism_equals_one_process(method: str, two: Found):
    for found in two.at("sharding", f"tensor parallel, {method}"):
        assert found["of the way"] < 1e-10
        assert found["kinds"] == ["plain", "shards"]


@pytest.mark.parametrize("name", list(sharding.LAYOUTS))
def test_layouts_are_known_without_the_model_and_clipped_as_a_whole(name: str, two: Found):
    for key in (f"{name}, without the model", f"{name}, clipped"):
        for found in two.at("sharding", key):
            assert found["of the way"] < 1e-10, key


EXPECTED = {
    "sequence parallel": "(Replicate(),) <- (Partial(sum),)",
    "data over tensor": "(Shard(dim=0), Shard(dim=1)) <- (Shard(dim=0), Shard(dim=1))",
    "two replicas of one shard": "(Replicate(), Shard(dim=0)) <- (Replicate(), Shard(dim=0))",
    "beside plain": "None <- None",
}


@pytest.mark.parametrize("name", list(EXPECTED))
def test_the_layouts_are_what_they_are_called(name: str, two: Found):
    assert EXPECTED[name] in two.alike("sharding", f"placements, {name}")


def test_shards_are_strided_where_two_dimensions_share_one(four: Found):
    assert any("_StridedShard" in x for x in four.alike("four", "placements, two by two"))


def test_a_model_that_computes_in_bfloat16_keeps_an_exact_radius(two: Found):
    assert two.alike("sharding", "bfloat16") == pytest.approx([0.5, 0.5], rel=1e-6)


def test_a_rank_may_hold_nothing_of_a_parameter(two: Found):
    first, second = two.at("sharding", "on one rank")
    assert (first["held"], second["held"]) == (1, 0)
    assert max(first["deviation"], second["deviation"]) < 1e-12


def test_shards_over_two_process_groups_are_summed_in_one_order(two: Found):
    expected = pytest.approx(0.5, rel=1e-5)
    assert [x["radius"] for x in two.at("sharding", "two meshes")] == [expected, expected]


# --- checkpoints


@pytest.mark.parametrize("method", checkpoint.REMEMBERING)
def test_a_resumed_run_has_the_bits_of_one_that_was_not_stopped(method: str, two: Found):
    wrappings = checkpoint.WRAPPINGS if method in SOME else ["fsdp"]
    kinds = ["same", "flattened"] if method == "friendly-sam" else ["same"]
    for key in [f"{kind}, {method}, {wrapping}" for kind in kinds for wrapping in wrappings]:
        for name, values in two.alike("checkpoint", key).items():
            assert values[0] == values[1], name
            assert name == "costs" or len(values[0]) == 40


@pytest.mark.parametrize("method", SOME)
def test_two_processes_go_on_from_the_checkpoint_of_one(method: str, two: Found):
    assert max(two.at("checkpoint", f"from one, {method}")) < 1e-9


@pytest.mark.parametrize("method", SOME)
def test_one_process_goes_on_from_the_checkpoint_of_two(method: str, two: Found):
    two.at("checkpoint", f"to one, {method}, fsdp")
    folder = two.folder / f"to one, {method}, fsdp"
    assert checkpoint.take_up(method, "alone", folder) < 1e-9


@pytest.mark.parametrize("method", SOME)
def test_an_optimizer_that_knows_its_replicas_can_be_copied(method: str, two: Found):
    for how in ("deepcopy", "pickle"):
        assert set(two.alike("checkpoint", f"{how}, {method}").values()) == {True}, how


# --- trouble on one rank


def assert_dropped(found: dict[str, Any]) -> None:
    """The third of five steps, with a warning, and without a trace."""
    assert found["counts"]["skipped"] == 1
    assert found["counts"]["steps"] == 2
    assert found["unmoved"]
    assert found["state"]
    assert found["as if nothing had been"]
    assert found["agree"]
    assert len(found["said"]) == 1


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_batch_on_one_rank_drops_the_step_on_all(method: str, two: Found):
    for wrapping in trouble.WRAPPINGS if method in SOME else ("ddp",):
        for found in two.at("trouble", f"empty, {method}, {wrapping}"):
            assert_dropped(found)


@pytest.mark.parametrize("method", SOME)
def test_inf_in_any_pass_of_one_rank_drops_the_step_on_all(method: str, two: Found):
    keys = [key for key in two.of("trouble")[0] if key.startswith(f"inf, {method},")]
    assert f"inf, {method}, local" in keys
    assert len(keys) > (1 if "look" in method and method != "lookbehind-sam" else 2)
    for key in keys:
        for found in two.at("trouble", key):
            assert_dropped(found)


@pytest.mark.parametrize("wrapping", trouble.WRAPPINGS)
def test_a_step_that_is_not_finite_raises_on_all_ranks(wrapping: str, two: Found):
    found = two.alike("trouble", f"raise, {wrapping}")
    assert "inf or nan" in found["raised"]
    assert found["unmoved"]
    assert found["as if nothing had been"]
    assert found["counts"]["skipped"] == 0


@pytest.mark.parametrize("call", [0, 1])
@pytest.mark.parametrize(
    "wrapping, ascent", [("ddp", "global"), ("fsdp", "global"), ("ddp", "local")]
)
def test_an_overflow_on_one_rank_halves_the_scale_on_all(
    wrapping: str, ascent: str, call: int, two: Found
):
    found = two.alike("trouble", f"overflow, {wrapping}, {ascent}, pass {call}")
    assert found["unmoved"]
    assert found["agree"]
    assert found["scales"] == [128.0, 256.0]
    assert found["counts"] == {"steps": 3, "skipped": 1, "perturbed": 3}


FAILING = [key for key in failing.FAILURES if key.startswith("failing, ")]


@pytest.mark.parametrize("key", FAILING)
def test_a_failing_rank_is_named_by_those_who_wait_for_it(key: str, broken: Found):
    waiting, gone = broken.at("failing", key)
    assert gone["raised"] == {"type": "Broken", "message": "the data of this rank are gone"}
    assert waiting["raised"]["type"] == "RuntimeError"
    assert waiting["raised"]["message"] == (
        "rank 1 failed in this step (Broken: the data of this rank are gone), and the others "
        "waited in vain; the weights of this rank are restored"
    )
    assert waiting["seconds"] < failing.PATIENCE + 3
    for found in (waiting, gone):
        assert found["unmoved"]
        assert found["same cost"]


def test_a_hanging_rank_is_named_too(broken: Found):
    waiting, _ = broken.at("failing", "hanging")
    assert waiting["raised"]["message"].startswith("the wait for rank 1 has timed out in this step")
    assert waiting["unmoved"]
    assert waiting["same cost"]


def test_an_error_that_all_ranks_meet_is_each_ones_own_and_can_be_survived(broken: Found):
    found = broken.alike("failing", "failing alike")
    assert found["raised"] == {"type": "Broken", "message": "too large"}
    assert found["unmoved"]
    assert found["as if nothing had been"]
    expected = ["Broken: too large", "ValueError: something else"]
    assert broken.alike("failing", "failing once more")["raised"] == expected


# --- what is refused


@pytest.mark.parametrize(
    "case, reason",
    [
        ("local, sharded", r"these are sharded: use ascent=\"global\", or Distributed"),
        ("local, sharded, unknown", r"these are sharded: use ascent=\"global\", or Distributed"),
        ("local, static graph", "static_graph=True never reduces rightly: use"),
        ("FSDP1", r"wrap the model with torch.distributed.fsdp.fully_shard"),
        ("FSDP1, unknown", r"wrap the model with torch.distributed.fsdp.fully_shard"),
        ("FSDP1, its own parameters", r"wrap the model with torch.distributed.fsdp.fully_shard"),
    ],
)
def test_what_cannot_be_right_is_refused(case: str, reason: str, two: Found):
    found = two.alike("trouble", f"refused, {case}")
    assert found["type"] == "ValueError"
    assert reason.replace("\\", "") in found["message"]


def test_local_ascent_must_know_the_replicas():
    model = nn.Linear(4, 2)
    for know in (model, None):
        base = torch.optim.SGD(model.parameters(), lr=0.1)
        with pytest.raises(ValueError, match="pass the DistributedDataParallel module as model="):
            flatmin.SAM(base, model=know, ascent="local")


def test_deepspeed_is_refused():
    model = nn.Linear(4, 2)
    model.weight.ds_id = 0  # its mark on every parameter under ZeRO 3
    with pytest.raises(ValueError, match="DeepSpeed owns the backward pass"):
        flatmin.SAM(torch.optim.SGD(model.parameters(), lr=0.1))
    Engine = type("DeepSpeedEngine", (nn.Linear,), {})
    engine = Engine(4, 2)
    with pytest.raises(ValueError, match="DeepSpeed owns the backward pass"):
        flatmin.SAM(torch.optim.SGD(engine.parameters(), lr=0.1), model=engine)


# --- all was judged


def test_no_scenario_has_failed(two: Found, broken: Found, four: Found):
    for found, scripts in (
        (two, ["equality", "local", "sharding", "checkpoint", "trouble"]),
        (broken, ["failing"]),
        (four, ["four"]),
    ):
        for script in scripts:
            for key in found.of(script)[0]:
                found.at(script, key)
