"""What a run came to: counts over all clips, as tables on the terminal and as one page with pictures."""

from deescal.report.page import write_report
from deescal.report.summary import Summary, judge_warning, summarize
from deescal.report.tables import funnel_table, stage_table

__all__ = ["Summary", "funnel_table", "judge_warning", "stage_table", "summarize", "write_report"]
