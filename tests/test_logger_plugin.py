"""`snakemake --logger relu-sparsity`, from the records that Snakemake logs."""

import logging

from snakemake.settings.types import OutputSettings
from snakemake_interface_logger_plugins.common import LogEvent

from relu_sparsity.errors import GOES_ON
from snakemake_logger_plugin_relu_sparsity import LogHandler


def record(message, level=logging.INFO, **told):
    return logging.makeLogRecord({"msg": message, "levelno": level, **told})


def failed(log):
    return record(
        "Error in rule train", logging.ERROR, event=LogEvent.JOB_ERROR, rule_name="train", jobid=3,
        rule_msg=None, input=[], output=[], log=[str(log)], conda_env=None, container_img=None,
        aux={}, indent=False, shellcmd="relu-sparsity train",
    )  # fmt: skip


def test_a_job_that_was_stopped_is_a_line_and_one_that_failed_has_its_log(tmp_path, capsys):
    handler = LogHandler(OutputSettings(show_failed_logs=True), None)
    log = tmp_path / "log"
    log.write_text(f"step 50 of 500\nbaseline seed 0: stopped at step 84 of 500; {GOES_ON}\n")
    handler.emit(
        record("... returned non-zero exit status 143.", logging.ERROR, event=LogEvent.ERROR)
    )
    handler.emit(failed(log))
    told = capsys.readouterr().err
    assert told == f"baseline seed 0: stopped at step 84 of 500; {GOES_ON}\n"
    log.write_text("error: the loss is nan\n")
    handler.emit(
        record("... returned non-zero exit status 1.", logging.ERROR, event=LogEvent.ERROR)
    )
    handler.emit(failed(log))
    told = capsys.readouterr().err
    assert "exit status 1" in told
    assert "Error in rule train" in told
    assert "error: the loss is nan" in told


def test_what_snakemake_says_beside_is_left_to_its_log(capsys):
    handler = LogHandler(OutputSettings(), None)
    handler.emit(record("Select jobs to execute..."))
    handler.emit(record("Nothing to be done (all requested files are present and up to date)."))
    handler.emit(record("a file is missing", logging.WARNING))
    assert capsys.readouterr().err.splitlines() == [
        "Nothing to be done (all requested files are present and up to date).",
        "a file is missing",
    ]
