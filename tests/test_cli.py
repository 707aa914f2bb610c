"""The command line: what it prints, and how it fails."""

import json
import logging
import subprocess
import sys

import pytest

from cellfeed.command import calibrate, cli
from cellfeed.command.cli import main


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


def test_info_says_what_a_store_holds(store, capsys):
    assert main(["info", store, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["n_obs"], found["measurements"]["RNA"]["n_vars"]) == (100, 30)
    assert found["obs"]["label"] == "string"
    assert found["measurements"]["RNA"]["X"] == {"raw": "SparseNDArray (100, 30)"}
    assert main(["info", store]) == 0
    text = capsys.readouterr().out
    assert "100 cells; obs: soma_joinid (int64), label (string)" in text
    assert "X raw: SparseNDArray (100, 30)" in text
    assert main(["info", "nowhere"]) == 2


def test_a_plan_has_a_label_and_a_mixing(store, capsys):
    common = ["plan", store, "--batch-size", "10", "--json"]
    for mixing in ("0.9", "90%"):
        assert main([*common, "--label", "donor", "--mixing", mixing, "--memory-budget", "2G"]) == 0
        assert json.loads(capsys.readouterr().out)["label"] == "donor"
    assert main([*common, "--mixing", "nine"]) == 2
    assert "mixing='nine' must be more than 0 and at most 1" in capsys.readouterr().err
    assert main([*common, "--memory-budget", "2000000000"]) == 0


def test_the_command_has_a_version_and_is_a_module():
    printed = subprocess.run(
        [sys.executable, "-m", "cellfeed", "--version"], capture_output=True, text=True, timeout=60
    )
    assert printed.stdout.startswith("cellfeed 0.")


def test_region_and_anonymous_are_settings_of_the_context(store, capsys, monkeypatch):
    given = []
    monkeypatch.setattr(
        "cellfeed.command.info.describe", lambda uri, context, **more: given.append((context, more)) or {}
    )
    monkeypatch.setattr("cellfeed.command.info.as_text", lambda found: "")
    main(["info", store, "--region", "us-west-2", "--anonymous", "--retry-deadline", "3"])
    ((context, more),) = given
    settings = context.tiledb_config
    assert (settings["vfs.s3.region"], settings["vfs.s3.no_sign_request"]) == ("us-west-2", "true")
    assert more == {"retry_deadline_s": 3.0}


def test_failed_attempts_are_lines_on_stderr_one_per_second_at_most(store, capsys, monkeypatch):
    def fails(options):
        log = logging.getLogger("cellfeed.retry")
        for k in range(5):
            log.info("attempt %d failed, the next is in 0.2 s, the last in 60 s: lost", k)

    monkeypatch.setattr(cli, "_info", fails)
    assert main(["info", store]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "cellfeed: attempt 0 failed, the next is in 0.2 s, the last in 60 s: lost"
    ]
    assert not logging.getLogger("cellfeed.retry").handlers


def test_bars_are_not_written_to_files(store, capsys):
    assert main(["bench", store, "--batch-size", "10"]) == 0
    assert capsys.readouterr().err == ""


def test_the_cheapest_setting_that_reaches_the_target_is_marked(store):
    """Cells of a type lie in each chunk: row-blocks mix it, and smaller chunks cost more and give no more."""
    result = calibrate.run(store, label="label", mixing=0.9, batch_size=10, memory_budget="33 MiB", progress=False)
    chosen = result.chosen
    reaching = [
        setting
        for setting in result.settings
        if setting.plan is not None
        and setting.kind != "published default"
        and setting.parameters["memory_budget"] == "33 MiB"
        and setting.plan.effective_batch_size >= 9
    ]
    assert chosen.plan.decode_amplification == min(setting.plan.decode_amplification for setting in reaching)
