"""The command line: its output and its errors."""

import json
import logging
import subprocess
import sys

import pytest

from cellfeed.command import calibrate
from cellfeed.command.cli import main
from tests.support.processes import PATIENCE_S


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
    assert main(["plan", store, "--obs-filter", ""]) == 0
    assert "peak memory" in capsys.readouterr().out


def test_errors_are_one_line_and_a_status(tmp_path, capsys):
    assert main(["plan", str(tmp_path / "nothing")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("cellfeed: experiment=")
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ([], "Missing command. Try 'cellfeed --help'."),
        (["fly"], "No such command 'fly'. Try 'cellfeed --help'."),
        (["plan"], "Missing argument 'SOURCE'. Try 'cellfeed plan --help'."),
        (["plan", "x", "--mixin", "1"], "No such option: --mixin (Possible options: --mixing). Try 'cellfeed plan --"),
        (["plan", "x", "--seed", "y"], "Invalid value for '--seed': "),
    ],
)
def test_errors_of_usage_are_one_line_and_a_status(capsys, arguments, shown):
    assert main(arguments) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith(f"cellfeed: {shown}")
    assert error.count("\n") == 1


def test_ctrl_c_has_a_status(capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("cellfeed.command.info.describe", interrupted)
    assert main(["info", "store"]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("no_color", [False, True])
def test_errors_are_red_on_a_terminal_unless_no_color_is_set(capsys, monkeypatch, no_color):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    assert main(["fly"]) == 2
    assert ("31m" in capsys.readouterr().err) is not no_color


@pytest.mark.parametrize("command", ["demo", "info", "plan", "bench", "calibrate", "copy"])
def test_help_shows_groups_of_options_in_80_columns(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    assert main([command, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    groups = [line.split()[1] for line in lines if line.startswith("╭─")]
    assert groups[-1] == "Access"
    assert ("Cells" in groups) is (command != "info")
    assert any("--region" in line for line in lines)


def test_shells_complete_commands(capsys, monkeypatch):
    """The environment is that of the script that ``--install-completion`` installs."""
    monkeypatch.setenv("_CELLFEED_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "cellfeed ca")
    monkeypatch.setenv("COMP_CWORD", "1")
    with pytest.raises(SystemExit):
        main([])
    assert capsys.readouterr().out == "calibrate\n"


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
        [sys.executable, "-m", "cellfeed", "--version"], capture_output=True, text=True, timeout=PATIENCE_S
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
    def fails(*_, **__):
        log = logging.getLogger("cellfeed.retry")
        for k in range(5):
            record = log.makeRecord(log.name, logging.INFO, "retry.py", 1, f"attempt {k} failed", (), None)
            record.created = 0.3 * k
            log.handle(record)
        return {}

    monkeypatch.setattr("cellfeed.command.info.describe", fails)
    monkeypatch.setattr("cellfeed.command.info.as_text", lambda found: "")
    assert main(["info", store]) == 0
    assert capsys.readouterr().err.splitlines() == ["cellfeed: attempt 0 failed", "cellfeed: attempt 4 failed"]
    assert not logging.getLogger("cellfeed.retry").handlers


def test_bars_are_not_written_to_files(store, capsys):
    assert main(["bench", store, "--batch-size", "10"]) == 0
    assert capsys.readouterr().err == ""


def test_the_cheapest_setting_that_reaches_the_target_is_marked(store):
    """Each chunk has cells of all types: row-blocks mix them, and smaller chunks cost more without a benefit."""
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
