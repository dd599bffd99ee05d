"""The pages that explain a result, or a diagnosis."""

from alula.report.diagnosis import write_diagnosis
from alula.report.page import write_report

__all__ = ["write_diagnosis", "write_report"]
