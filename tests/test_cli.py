"""The command line: what it prints, and how it fails."""

import json

import pytest

from cellfeed.cli import main


def test_demo_on_a_store_of_ones_own(store, capsys):
    assert main(["demo", "--uri", store, "--label", "label", "--epochs", "1", "--batch-size", "16"]) == 0
    out = capsys.readouterr().out
    assert "held-out accuracy" in out
    assert "the most frequent label alone" in out
    assert "cells/s" in out
    assert "shuffled together" in out


def test_plan(store, capsys):
    assert main(["plan", store, "--json", "--obs-filter", "label == 'type 0'", "--batch-size", "10"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["n_obs"] == 34
    assert plan["n_minibatches"] == 4
    assert main(["plan", store]) == 0
    assert "peak memory" in capsys.readouterr().out


def test_errors_are_one_line_and_a_status(tmp_path, capsys):
    assert main(["plan", str(tmp_path / "nothing")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("cellfeed: experiment=")
    assert "Traceback" not in error
    with pytest.raises(SystemExit):
        main(["fly"])


def test_bench(store, capsys):
    assert main(["bench", store, "--sparse", "--batch-size", "10", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["n_obs"] == 100
    assert result["stats"]["n_minibatches"] == 10
    assert main(["bench", store, "--batch-size", "10"]) == 0
    assert "cells/s, first minibatch after" in capsys.readouterr().out
    assert main(["bench", store, "--seconds", "0"]) == 2
