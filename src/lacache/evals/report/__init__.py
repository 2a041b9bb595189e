"""A page of tables, sentences and pictures, made from records alone."""

from lacache.evals.report.load import read_runs
from lacache.evals.report.page import report_record, write_report
from lacache.evals.report.run import Run

__all__ = ["Run", "read_runs", "report_record", "write_report"]
