"""`snakemake --logger relu-sparsity`: what a person at a terminal wants to know of a workflow.

A line for each running job, one for each that took its time or was stopped, what failed and why,
and how long the rest takes. Snakemake's own log has everything, as before: `.snakemake/log`.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

from relu_sparsity.errors import GOES_ON, STOPPED_STATUS

_FAILED = (LogEvent.ERROR, LogEvent.JOB_ERROR, LogEvent.GROUP_ERROR)


def _stopped(told: Mapping[str, Any]) -> str | None:
    """What to say of a job that was asked to stop, and has saved; None of one that failed."""
    if told["event"] == LogEvent.ERROR:
        # Snakemake tells the same again, job by job.
        return "" if f"exit status {STOPPED_STATUS}" in str(told["msg"]) else None
    for log in told.get("log") or ():
        lines = Path(log).read_text(encoding="utf-8").splitlines() if Path(log).is_file() else []
        if lines and GOES_ON in lines[-1]:
            return lines[-1]
    return None


class LogHandler(LogHandlerBase):
    """Tells a view what starts, ends and fails."""

    def __post_init__(self) -> None:
        # Snakemake imports every plugin in each of its processes.
        from snakemake.logging import DefaultFormatter

        from relu_sparsity.dag_view import DagView

        settings = self.common_settings
        self._texts = DefaultFormatter(settings.quiet, settings.show_failed_logs)
        # Whoever asks for more of Snakemake's own messages gets them.
        self._shows_all = settings.dryrun or settings.verbose or settings.printshellcmds
        self._view = DagView()

    def emit(self, record: logging.LogRecord) -> None:
        """Shows what has happened."""
        try:
            self._take(record)
        except Exception:
            self.handleError(record)

    def _take(self, record: logging.LogRecord) -> None:
        told: dict[str, Any] = record.__dict__
        event = told.get("event")
        if event == LogEvent.JOB_ERROR:
            self._view.fail(told["jobid"])
        if not self._shows_all and event in _FAILED and (stopped := _stopped(told)) is not None:
            self._view.say(stopped)
        elif self._shows_all or event in _FAILED or record.levelno >= logging.WARNING:
            self._view.say(self._texts.format(record))
        elif event == LogEvent.RUN_INFO:
            counts = dict(told["stats"])
            counts.pop("total")
            self._view.begin(counts)
        elif event == LogEvent.JOB_INFO:
            self._view.start(
                told["jobid"], told["rule_name"], dict(told["wildcards"] or {}), told["rule_msg"]
            )
        elif event == LogEvent.JOB_FINISHED:
            self._view.finish(told["job_id"])
        elif record.getMessage().startswith("Nothing to be done"):
            self._view.say(record.getMessage())

    def close(self) -> None:
        """Leaves the terminal as it should be."""
        self._view.close()
        super().close()

    @property
    def writes_to_stream(self) -> bool:
        """It writes to standard error."""
        return True

    @property
    def writes_to_file(self) -> bool:
        """It writes no file."""
        return False

    @property
    def has_filter(self) -> bool:
        """It chooses itself what to show."""
        return True

    @property
    def has_formatter(self) -> bool:
        """It has its own texts."""
        return True

    @property
    def needs_rulegraph(self) -> bool:
        """It draws no graph."""
        return False
