"""Results for people: tables for the terminal, and pages with plots from the `report` extra."""

from gossamer.report.tables import compare_table, evidence_table

__all__ = ["compare_table", "evidence_table"]
