"""The step as a sequence of passes: for loops that own their backward pass, the very same step."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import pytest
import torch
from tables import ALONE, BEGIN_PERTURBED, LOOKING, METHODS, Trainer, assert_same_bits
from torch import Tensor

import flatmin
from flatmin.engine.passes import Passes, Turn

every_method = pytest.mark.parametrize("method", METHODS)
every_looking_method = pytest.mark.parametrize("method", LOOKING)
every_base = pytest.mark.parametrize("base", ALONE)

every_method_of_one_loss = pytest.mark.parametrize(
    "method", [name for name in METHODS if not flatmin.methods.TABLE[name].per_sample]
)

PRIMARY, AUXILIARY = "primary", "auxiliary"


def run_pass(trainer: Trainer, turn: Turn) -> Tensor:
    """What the user's loop does with a pass, but for saying that it is done."""
    with torch.set_grad_enabled(turn.gradient):
        loss = trainer.closure(turn.batch, turn.samples)
    if trainer.method.per_sample and turn.gradient:
        loss.mean().backward()
    return loss


def run_all(trainer: Trainer, step: Passes) -> None:
    trainer.calls.clear()
    for turn in step:
        turn.done(run_pass(trainer, turn))


def turns(trainer: Trainer) -> Iterator[Turn]:
    """The passes of the next step, seeded as `Trainer.step` seeds them, each run and done."""
    torch.manual_seed(1000 + trainer.steps)
    trainer.calls.clear()
    for turn in trainer.optimizer.passes():
        turn.done(run_pass(trainer, turn))
        yield turn
    trainer.steps += 1


def run_by_passes(trainer: Trainer, steps: int = 4) -> Trainer:
    for _ in range(steps):
        list(turns(trainer))
    return trainer


def loop(trainer: Trainer, tell: Callable[[int, Turn, Tensor], None]) -> None:
    """One step of a loop that tells each pass in its own way."""
    for i, turn in enumerate(trainer.optimizer.passes()):
        tell(i, turn, run_pass(trainer, turn))


def described(turn: Turn) -> tuple:
    return turn.batch, turn.perturbed, turn.gradient, turn.last


def unclosed(trainer: Trainer, at: int) -> Passes:
    """Passes that were left at pass `at`, which has run; the caller's loop has gone."""
    step = trainer.optimizer.passes()
    for i, turn in enumerate(step):
        loss = run_pass(trainer, turn)
        if i == at:
            return step
        turn.done(loss)
    raise AssertionError(f"there is no pass {at}")


def passes_of(method: str, step: int = 0) -> list[Turn]:
    """The passes of a step."""
    return list(turns(Trainer(method).run(step)))


# --- the same step


@every_base
@every_method
def test_passes_are_the_step_bit_for_bit(method, base):
    closures = Trainer(method, base, "two groups").run(6)
    passes = run_by_passes(Trainer(method, base, "two groups"), 6)
    assert_same_bits(passes.bits(), closures.bits())
    assert passes.optimizer.cost == closures.optimizer.cost
    after_closures = closures.step(), torch.rand(3)
    step = passes.optimizer.passes()
    torch.manual_seed(1000 + passes.steps)
    for turn in step:
        turn.done(run_pass(passes, turn))
    assert torch.equal(step.loss, after_closures[0])
    assert torch.equal(torch.rand(3), after_closures[1])


@every_method
def test_without_the_model_too(method):
    closures = Trainer(method, know_model=False).run(4)
    passes = run_by_passes(Trainer(method, know_model=False), 4)
    assert_same_bits(passes.bits(), closures.bits())


@every_method
def test_a_finished_step_is_over(method):
    trainer = Trainer(method)
    step = trainer.optimizer.passes()
    for turn in step:
        turn.done(run_pass(trainer, turn))
    before = trainer.bits()
    assert step.finished
    assert list(step) == []
    step.close()
    assert_same_bits(trainer.bits(), before)


@every_method
def test_every_pass_begins_without_gradients(method):
    trainer = Trainer(method)
    for p in trainer.model.parameters():
        p.grad = torch.full_like(p, 7.0)
    step = trainer.optimizer.passes()
    for turn in step:
        assert all(p.grad is None for p in trainer.model.parameters())
        turn.done(run_pass(trainer, turn))


@every_looking_method
def test_a_perturbed_pass_stands_elsewhere_and_the_others_at_home(method):
    trainer = Trainer(method).run(1)  # before it, some have no direction yet
    home = [p.detach().clone() for p in trainer.model.parameters()]
    kept = [p.detach().clone() for p in trainer.model.parameters()]
    for turn in trainer.optimizer.passes():
        kept = [p.detach().clone() for p in trainer.model.parameters()]
        same = all(torch.equal(a, b) for a, b in zip(home, kept, strict=True))
        assert same is not turn.perturbed
        turn.done(run_pass(trainer, turn))


@every_method_of_one_loss
def test_a_loss_may_be_told_as_a_number(method):
    tensors, numbers = Trainer(method), Trainer(method)
    loss = tensors.step()
    torch.manual_seed(1000)
    step = numbers.optimizer.passes()
    for turn in step:
        turn.done(run_pass(numbers, turn).item())
    assert_same_bits(numbers.bits(), tensors.bits())
    assert step.loss == loss.item()


@every_method_of_one_loss
def test_a_loss_need_not_be_told(method):
    told, untold = Trainer(method), Trainer(method)
    told.step()
    torch.manual_seed(1000)
    step = untold.optimizer.passes()
    for turn in step:
        run_pass(untold, turn)
        turn.done()
    assert_same_bits(untold.bits(), told.bits())
    assert step.loss is None


@pytest.mark.parametrize("told", [None, 1.5, torch.tensor(1.5)])
def test_esam_is_told_one_loss_a_sample(told):
    trainer = Trainer("esam")
    before = trainer.bits()
    with pytest.raises(TypeError, match="one loss a sample"):
        loop(trainer, lambda i, turn, loss: turn.done(told))
    assert_same_bits(trainer.bits(), before)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@every_method
def test_a_pass_that_is_not_finite_ends_the_step(method, bad):
    for spoiled in range(len(passes_of(method))):
        trainer = Trainer(method)
        before = trainer.bits()
        trainer.factor = lambda batch, call, spoiled=spoiled: bad if call == spoiled else 1.0
        with pytest.warns(RuntimeWarning, match="skipped"):
            seen = list(turns(trainer))
        assert len(seen) == spoiled + 1
        assert trainer.optimizer.cost.skipped == 1
        after = trainer.bits()
        moved = [
            k for k in after if not k.startswith("group") and not torch.equal(after[k], before[k])
        ]
        assert moved == []


# --- what is said about a pass


def test_the_turns_of_a_step_that_looks_nowhere():
    assert [described(t) for t in turns(Trainer("sgd"))] == [(PRIMARY, False, True, True)]


@pytest.mark.parametrize("method", ["sam", "asam", "friendly-sam", "gsam", "agnostic-sam-previous"])
def test_the_turns_of_a_step_of_two_passes(method):
    assert [described(t) for t in turns(Trainer(method))] == [
        (PRIMARY, False, True, False),
        (PRIMARY, True, True, True),
    ]


@pytest.mark.parametrize("method", BEGIN_PERTURBED)
def test_the_turn_of_a_step_that_begins_perturbed(method):
    trainer = Trainer(method)
    for _ in range(3):
        assert [described(t) for t in turns(trainer)] == [(PRIMARY, True, True, True)]


@pytest.mark.parametrize("method", ["mixed-rwp", "wsam"])
def test_the_turns_of_a_mean_of_two_gradients(method):
    assert [described(t) for t in turns(Trainer(method))] == [
        (PRIMARY, False, True, False),
        (PRIMARY, True, True, True),
    ]


@pytest.mark.parametrize("method", ["agnostic-sam", "align-asam"])
def test_the_turns_of_a_step_that_measures_another_batch(method):
    assert [described(t) for t in turns(Trainer(method))] == [
        (PRIMARY, False, True, False),
        (AUXILIARY, False, True, False),
        (AUXILIARY, True, True, False),
        (PRIMARY, True, True, True),
    ]


def test_the_turns_of_a_periodic_policy():
    trainer = Trainer("look-sam")
    look = [(PRIMARY, False, True, False), (PRIMARY, True, True, True)]
    alone = [(PRIMARY, False, True, True)]
    seen = [[described(t) for t in turns(trainer)] for _ in range(7)]
    assert seen == [look, alone, alone, alone, alone, look, alone]


@pytest.mark.parametrize("method", ["ae-sam", "ae-look-sam"])
def test_the_turns_of_a_policy_that_asks_the_gradient_first(method):
    trainer = Trainer(method)
    trainer.factor = lambda batch, call: 0.01 if trainer.steps % 2 else 1.0
    first = (PRIMARY, False, True, None)
    seen = [[described(t) for t in turns(trainer)] for _ in range(4)]
    assert seen == [[first, (PRIMARY, True, True, True)], [first]] * 2


def test_the_turns_of_an_adaptive_policy_with_another_batch():
    assert [described(t) for t in turns(Trainer("ae-agnostic-sam"))] == [
        (PRIMARY, False, True, None),
        (AUXILIARY, False, True, False),
        (AUXILIARY, True, True, False),
        (PRIMARY, True, True, True),
    ]


def test_the_turns_of_lookbehind():
    climbing = [(PRIMARY, True, True, False)] * 4
    assert [described(t) for t in turns(Trainer("lookbehind-sam"))] == [
        (PRIMARY, False, True, False),
        *climbing,
        (PRIMARY, True, True, True),
    ]


def test_the_turns_of_esam():
    trainer = Trainer("esam")
    first, losses, chosen = turns(trainer)
    assert described(first) == (PRIMARY, False, True, False)
    assert described(losses) == (PRIMARY, True, False, False)
    assert described(chosen) == (PRIMARY, True, True, True)
    assert first.samples is None
    assert losses.samples is None
    assert chosen.samples.shape == (12,)
    assert chosen.samples.dtype == torch.int64
    assert torch.equal(chosen.samples, chosen.samples.unique())


def test_the_turns_of_esam_with_the_whole_batch():
    trainer = Trainer("esam", build=lambda base, **o: flatmin.ESAM(base, gamma=1.0, **o))
    seen = list(turns(trainer))
    assert [described(t)[1:] for t in seen] == [(False, True, False), (True, True, True)]
    assert all(t.samples is None for t in seen)


@every_method
def test_the_last_pass_is_announced_unless_it_depends(method):
    trainer = Trainer(method)
    for _ in range(6):
        seen = list(turns(trainer))
        announced = [t.last for t in seen]
        undecided = announced == [None]
        assert undecided or announced[-1] is True
        assert True not in announced[:-1]
        assert None not in announced[1:]
        assert (announced[0] is None) == trainer.method.adaptive


@every_method
def test_one_process_may_always_communicate(method):
    assert all(t.communicate is True for t in turns(Trainer(method)))


@every_method
def test_the_loss_of_a_pass_is_what_it_was_told(method):
    trainer = Trainer(method)
    for turn in trainer.optimizer.passes():
        loss = run_pass(trainer, turn)
        turn.done(loss)
        assert turn.loss is loss


# --- left out, repeated, left early


@every_method
def test_a_pass_left_out_raises_and_leaves_no_trace(method):
    for missing in range(len(passes_of(method, step=1))):
        trainer = Trainer(method).run(1)
        before = trainer.bits()
        with pytest.raises(RuntimeError, match=r"pass was left out.*call done\(loss\)"):
            loop(trainer, lambda i, turn, loss: i == missing or turn.done(loss))
        assert_same_bits(trainer.bits(), before)
        assert_same_bits(run_by_passes(trainer, 2).bits(), Trainer(method).run(3).bits())


@every_method
def test_a_pass_repeated_raises_and_leaves_no_trace(method):
    for repeated in range(len(passes_of(method, step=1))):
        trainer = Trainer(method).run(1)
        before = trainer.bits()

        def tell(i, turn, loss, repeated=repeated):
            turn.done(loss)
            if i == repeated:
                turn.done(loss)

        with pytest.raises(RuntimeError, match=r"run twice.*call done\(loss\) once"):
            loop(trainer, tell)
        assert_same_bits(trainer.bits(), before)
        assert_same_bits(run_by_passes(trainer, 2).bits(), Trainer(method).run(3).bits())


@every_method
def test_a_step_left_early_can_be_given_up(method):
    for left in range(len(passes_of(method))):
        trainer = Trainer(method)
        before = trainer.bits()
        step = unclosed(trainer, left)
        step.close()
        assert step.finished
        assert list(step) == []
        assert_same_bits(trainer.bits(), before)
        assert_same_bits(run_by_passes(trainer, 2).bits(), Trainer(method).run(2).bits())


@every_method
def test_the_next_passes_say_that_a_step_was_left_early(method):
    for left in range(len(passes_of(method))):
        trainer = Trainer(method)
        before = trainer.bits()
        step = unclosed(trainer, left)
        with pytest.raises(RuntimeError, match=r"not all run.*close"):
            trainer.optimizer.passes()
        assert step.finished
        assert_same_bits(trainer.bits(), before)
        assert_same_bits(run_by_passes(trainer, 2).bits(), Trainer(method).run(2).bits())


@every_method
def test_the_next_step_says_that_a_step_was_left_early(method):
    for left in range(len(passes_of(method))):
        trainer = Trainer(method)
        before = trainer.bits()
        step = unclosed(trainer, left)
        with pytest.raises(RuntimeError, match=r"not all run.*close"):
            trainer.step()
        assert step.finished
        assert_same_bits(trainer.bits(), before)
        assert_same_bits(trainer.run(2).bits(), Trainer(method).run(2).bits())


@every_method
def test_passes_that_were_never_begun_are_not_all_run(method):
    trainer = Trainer(method)
    before = trainer.bits()
    step = trainer.optimizer.passes()
    with pytest.raises(RuntimeError, match="not all run"):
        trainer.optimizer.passes()
    assert step.finished
    assert_same_bits(trainer.bits(), before)
    assert_same_bits(run_by_passes(trainer, 2).bits(), Trainer(method).run(2).bits())


@every_method
def test_an_exception_in_the_loop_leaves_no_trace(method):
    """Whoever catches it, and saves the model, must not save perturbed weights."""
    for broken in range(len(passes_of(method))):
        trainer = Trainer(method)
        before = trainer.bits()

        def break_down(batch, call, broken=broken):
            if call == broken:
                raise KeyboardInterrupt

        trainer.on_call = break_down
        with pytest.raises(KeyboardInterrupt):
            list(turns(trainer))
        gc.collect(1)  # what is young; all of it takes a while
        assert_same_bits(trainer.bits(), before)


@every_method
def test_a_with_block_gives_the_step_up_when_it_ends(method):
    for broken in range(len(passes_of(method))):
        trainer = Trainer(method)
        before = trainer.bits()
        with trainer.optimizer.passes() as step:
            for i, turn in enumerate(step):
                loss = run_pass(trainer, turn)
                if i == broken:
                    break
                turn.done(loss)
        assert step.finished
        assert step.loss is None
        assert_same_bits(trainer.bits(), before)
        assert_same_bits(run_by_passes(trainer, 2).bits(), Trainer(method).run(2).bits())


@every_method
def test_a_with_block_gives_the_step_up_at_an_exception(method):
    for broken in range(len(passes_of(method))):
        trainer = Trainer(method)
        before = trainer.bits()

        def break_down(batch, call, broken=broken):
            if call == broken:
                raise KeyboardInterrupt

        trainer.on_call = break_down
        with pytest.raises(KeyboardInterrupt), trainer.optimizer.passes() as step:
            run_all(trainer, step)
        trainer.on_call = lambda batch, call: None
        assert step.finished
        assert_same_bits(trainer.bits(), before)
        assert_same_bits(run_by_passes(trainer, 2).bits(), Trainer(method).run(2).bits())


@every_method
def test_a_with_block_keeps_the_step_that_was_taken(method):
    trainer, expected = Trainer(method), Trainer(method)
    loss = expected.step()
    torch.manual_seed(1000)
    with trainer.optimizer.passes() as step:
        run_all(trainer, step)
    assert torch.equal(step.loss, loss)
    assert_same_bits(trainer.bits(), expected.bits())


@every_method
def test_a_backward_pass_that_was_forgotten_leaves_no_trace(method):
    for forgotten, seen in enumerate(passes_of(method)):
        if not seen.gradient:
            continue
        trainer = Trainer(method)
        before = trainer.bits()

        def tell(i, turn, loss, trainer=trainer, forgotten=forgotten):
            if i == forgotten:
                trainer.model.zero_grad()
            turn.done(loss)

        with pytest.raises(RuntimeError, match=f"{seen.batch} closure left no gradient"):
            loop(trainer, tell)
        assert_same_bits(trainer.bits(), before)
        assert_same_bits(run_by_passes(trainer, 2).bits(), Trainer(method).run(2).bits())
