"""The page that explains a result."""

from alula.report.page import write_report

__all__ = ["write_report"]
