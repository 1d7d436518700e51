"""Checkpoints: what goes in comes out, and what is damaged or another run's is refused."""

import json

import pytest
import torch

from training.checkpoint import CheckpointError, RunState, load_checkpoint, remove_checkpoints, save_checkpoint


def made(seed=0, steps=3):
    torch.manual_seed(seed)
    model = torch.nn.Linear(3, 2)
    optimiser = torch.optim.Adam(model.parameters(), fused=True)
    for _ in range(steps):
        optimiser.zero_grad()
        model(torch.ones(1, 3)).square().sum().backward()
        optimiser.step()
    return model, optimiser


def saved(folder, *, step=3):
    model, optimiser = made()
    state = (
        RunState.start("run")
        .model_copy(update={"step": step})
        .after_validation({"recall@20": 0.5}, monitor="recall@20")
    )
    save_checkpoint(folder, state, model=model, optimiser=optimiser, best={"weight": torch.full((2, 3), 7.0)})
    return model, optimiser, state


def test_model_optimiser_and_state_come_back_exactly(tmp_path):
    model, optimiser, state = saved(tmp_path)
    other, other_optimiser = made(seed=9, steps=0)
    found, best = load_checkpoint(tmp_path, run="run", model=other, optimiser=other_optimiser)
    assert (found.step, found.best, found.validations) == (state.step, state.best, state.validations)
    assert torch.equal(best["weight"], torch.full((2, 3), 7.0))
    for one, two in ((model, optimiser), (other, other_optimiser)):
        two.zero_grad()
        one(torch.ones(1, 3)).square().sum().backward()
        two.step()
    assert torch.equal(model.weight, other.weight)


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    assert load_checkpoint(tmp_path / "none", run="run", model=made()[0], optimiser=made()[1]) is None


def test_a_new_checkpoint_replaces_the_old_one(tmp_path):
    saved(tmp_path, step=3)
    saved(tmp_path, step=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint.json",
        "stage-000-step-000000004.safetensors",
    ]


def test_a_checkpoint_that_was_not_finished_leaves_the_old_one(tmp_path, monkeypatch):
    saved(tmp_path, step=3)
    monkeypatch.setattr(
        "training.checkpoint.write_durably", lambda path, content: (_ for _ in ()).throw(OSError("full"))
    )
    with pytest.raises(OSError, match="full"):
        saved(tmp_path, step=4)
    model, optimiser = made(steps=0)
    assert load_checkpoint(tmp_path, run="run", model=model, optimiser=optimiser)[0].step == 3


def test_another_runs_checkpoint_is_refused(tmp_path):
    saved(tmp_path)
    with pytest.raises(CheckpointError, match="belongs to another configuration or data set"):
        load_checkpoint(tmp_path, run="other", model=made()[0], optimiser=made()[1])


def test_damage_is_refused_and_changes_nothing(tmp_path):
    saved(tmp_path)
    model, optimiser = made(seed=5)
    before = model.weight.clone()
    (tensors,) = tmp_path.glob("*.safetensors")
    tensors.write_bytes(tensors.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="is missing or damaged"):
        load_checkpoint(tmp_path, run="run", model=model, optimiser=optimiser)
    state = json.loads((tmp_path / "checkpoint.json").read_text())
    (tmp_path / "checkpoint.json").write_text(json.dumps(state | {"step": -1}))
    with pytest.raises(CheckpointError, match="is damaged"):
        load_checkpoint(tmp_path, run="run", model=model, optimiser=optimiser)
    assert torch.equal(model.weight, before)


def test_a_finished_runs_checkpoint_goes_and_other_runs_stay(tmp_path):
    saved(tmp_path / "all" / "one")
    saved(tmp_path / "all" / "two")
    remove_checkpoints(tmp_path / "all" / "one")
    assert [path.name for path in (tmp_path / "all").iterdir()] == ["two"]
    remove_checkpoints(tmp_path / "all" / "two")
    assert not (tmp_path / "all").exists()


def test_an_equal_value_is_no_better():
    state = RunState.start("run").model_copy(update={"step": 1}).after_validation({"m": 0.5}, monitor="m")
    state = state.model_copy(update={"step": 2}).after_validation({"m": 0.5}, monitor="m")
    assert (state.best_step, state.misses) == (1, 1)
    state = state.model_copy(update={"step": 3}).after_validation({"m": 0.6}, monitor="m")
    assert (state.best_step, state.misses, state.best) == (3, 0, 0.6)
