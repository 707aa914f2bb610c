"""Calibration: the figures are those of datasets with the same settings, and X is not read."""

import json
import sys

import pytest

from cellfeed import ExperimentDataset, MissingDependencyError, PlanError, SelectionError
from cellfeed.command import calibrate
from cellfeed.command.cli import main
from cellfeed.loader import engine as engine_module
from cellfeed.sources.soma import query

BUDGET = "390 KiB"
"""A budget for a few chunks of the store; a quarter or half of it has room for none."""


@pytest.fixture
def uri(make_store):
    return make_store(2000, 12, extent=64)


@pytest.fixture
def no_reading(monkeypatch):
    def minibatches(*_, **__):
        raise AssertionError("X is read")

    monkeypatch.setattr(engine_module.Engine, "minibatches", minibatches)


def compare(uri, **options):
    return calibrate.run(uri, batch_size=64, seed=0, progress=False, **options)


@pytest.mark.parametrize("label", [None, "donor"])
@pytest.mark.usefixtures("no_reading")
def test_figures_are_those_of_the_datasets(uri, label):
    made = compare(uri, label=label, memory_budget="600 KiB")
    possible = [setting for setting in made.settings if setting.plan is not None]
    assert {setting.kind for setting in possible} == {"own plan", "mixing", "joinid order", "published default"}
    for setting in possible:
        assert setting.plan == ExperimentDataset(uri, batch_size=64, seed=0, **setting.parameters).plan(label)
    published = made.settings[-1]
    assert published.parameters == {"soma_chunk_size": 64, "shuffle_chunk_count": 2000, "memory_budget": "600 KiB"}


@pytest.mark.usefixtures("no_reading")
def test_what_is_chosen_is_what_a_dataset_makes(uri):
    own = compare(uri, memory_budget="600 KiB")
    assert [setting.chosen for setting in own.settings].count(True) == 1
    assert own.chosen.plan == ExperimentDataset(uri, batch_size=64, seed=0, memory_budget="600 KiB").plan()
    assert "\n* own plan " in str(own)
    asked = compare(uri, mixing=0.8, memory_budget="600 KiB")
    dataset = ExperimentDataset(uri, batch_size=64, seed=0, mixing=0.8, memory_budget="600 KiB")
    assert asked.chosen.parameters == {"mixing": 0.8, "memory_budget": "600 KiB"}
    assert asked.chosen.plan == dataset.plan()
    assert "* is chosen: ExperimentDataset(..., mixing=0.8, memory_budget='600 KiB')" in str(asked)


def test_targets_that_lead_to_one_plan_share_a_line(uri):
    made = compare(uri, mixing=0.7, memory_budget="4 MiB")
    assert made.chosen.name == "mixing=0.5, 0.7, 0.9"
    assert made.chosen.parameters["mixing"] == 0.7


@pytest.mark.usefixtures("no_reading")
def test_what_is_impossible_has_a_line_and_a_reason(uri):
    made = compare(uri, mixing=0.9, memory_budget=BUDGET)
    assert made.chosen is None
    lines = str(made).splitlines()
    assert any(
        "97.5 KiB  impossible (memory_budget of 97.5 KiB is too small for a chunk of 64 cells)" in x for x in lines
    )
    assert any(x.startswith("  mixing=0.9") and "impossible (possible is 0." in x for x in lines)
    assert lines[-1].startswith("Nothing is chosen: mixing=0.9 of batch_size=64 is not possible")
    with pytest.raises(PlanError, match="mixing=0.9 of batch_size=64 is not possible"):
        ExperimentDataset(uri, batch_size=64, mixing=0.9, memory_budget=BUDGET)


@pytest.mark.usefixtures("no_reading")
def test_cells_and_labels_are_read_once(uri, monkeypatch):
    read = []
    for module, name in ((query, "select"), (engine_module, "read_obs_column")):
        function = getattr(module, name)

        def noted(*args, name=name, function=function, **kwargs):
            read.append(name)
            return function(*args, **kwargs)

        monkeypatch.setattr(module, name, noted)
    compare(uri, label="donor")
    assert read == ["select", "read_obs_column"]


def test_settings_that_are_derived_keep_the_cells_and_are_checked(store):
    whole = ExperimentDataset(store, obs_column_names=["label"])
    other = whole._with(batch_size=7, shuffle=False)
    assert (other.seed, other.shape, len(other)) == (whole.seed, whole.shape, 15)
    assert other._engine.selection is whole._engine.selection
    assert not other._engine.settings.seed_given
    assert whole._with(seed=3)._engine.settings.seed_given
    assert len(next(iter(other))[0]) == 7
    with pytest.raises(PlanError, match="batch_size=0 must be"):
        whole._with(batch_size=0)


def test_speed_is_measured_where_it_is_asked_for(store):
    made = calibrate.run(store, speed=True, seconds=0.2, seed=0, batch_size=16, return_sparse_X=True, progress=False)
    assert all(setting.speed.n_obs == 100 and setting.speed.cells_per_second > 0 for setting in made.settings)
    assert "cells/s" in str(made)
    assert compare(store).settings[0].speed is None
    assert "cells/s" not in str(compare(store))


def strict(text):
    def refuse(constant):
        raise AssertionError(constant)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.usefixtures("no_reading")
def test_json_is_strict(uri, capsys):
    common = ["calibrate", uri, "--json", "--batch-size", "64", "--memory-budget", BUDGET]
    assert main([*common, "--label", "donor", "--obs-filter", "label == 'type 0'"]) == 0
    result = strict(capsys.readouterr().out)
    assert (result["n_obs"], result["label"]) == (667, "donor")
    chosen = [setting for setting in result["settings"] if setting["chosen"]]
    assert [setting["name"] for setting in chosen] == ["own plan"]
    assert chosen[0]["plan"]["pool_bytes"] < chosen[0]["plan"]["peak_memory_bytes"]
    assert chosen[0]["cells_per_second"] is None
    refused = [setting for setting in result["settings"] if setting["plan"] is None]
    assert all(setting["impossible"] and not setting["chosen"] for setting in refused)


@pytest.mark.parametrize("command", ["plan", "calibrate"])
def test_an_empty_selection_is_an_error(uri, capsys, command):
    assert main([command, uri, "--obs-filter", "number < 0"]) != 0
    assert "obs_query selects nothing" in capsys.readouterr().err


@pytest.mark.usefixtures("no_reading")
@pytest.mark.parametrize(("name", "magic"), [("a.png", b"\x89PNG\r\n\x1a\n"), ("a.svg", b"<?xml"), ("a.PDF", b"%PDF")])
def test_the_picture_is_one(uri, tmp_path, capsys, name, magic):
    picture = tmp_path / name
    options = ["--batch-size", "64", "--memory-budget", BUDGET, "--picture", str(picture)]
    assert main(["calibrate", uri, *options]) == 0
    assert picture.read_bytes().startswith(magic)
    assert "own plan" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--label", "labell"], "did you mean 'label'"),
        (["--mixing", "1.5"], "mixing=1.5 must be more than 0 and at most 1"),
        (["--mixing", "0"], "mixing=0.0 must be"),
        (["--mixing", "nan"], "mixing=nan must be"),
        (["--memory-budget", "1 KiB"], "give at least"),
        (["--memory-budget", "much"], "is not an amount of memory"),
        (["--batch-size", "0"], "batch_size=0 must be"),
        (["--seconds", "0", "--speed"], "seconds=0.0 must be"),
        (["--seconds", "nan"], "seconds=nan must be"),
        (["--picture", "a.bmp"], "must end in one of .png, .svg, .pdf"),
        (["--picture", "no/such/folder/a.png"], "there is no folder 'no/such/folder'"),
    ],
)
def test_bad_input_is_an_error_of_one_line(uri, capsys, options, message):
    assert main(["calibrate", uri, *options]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("cellfeed: ")
    assert message in error


def test_pictures_that_cannot_be_written(uri, tmp_path, capsys, monkeypatch):
    folder, dangling = tmp_path / "folder.png", tmp_path / "dangling.png"
    folder.mkdir()
    dangling.symlink_to(tmp_path / "nowhere" / "a.png")
    for path in (folder, dangling):
        with pytest.raises(OSError, match=path.name):
            compare(uri, picture=path)
        assert main(["calibrate", uri, "--picture", str(path)]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(ValueError, match="must end in one of"):
        compare(uri, picture="settings.bmp")
    monkeypatch.setitem(sys.modules, "adjustText", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "cellfeed\[plot\]"'):
        compare(uri, picture=tmp_path / "a.png")
    assert compare(uri).chosen


def test_what_is_compared_cannot_be_given(uri, tmp_path):
    with pytest.raises(PlanError, match="leave shuffle=False out"):
        compare(uri, shuffle=False)
    with pytest.raises(SelectionError, match="experiment="):
        compare(str(tmp_path / "nothing"))
