"""Cross-checking meta-gradients: vectors, a checker any framework can call, a report that names the bug."""

from refmeta.conformance.audit import audit
from refmeta.conformance.cases import Case
from refmeta.conformance.check import Skip, assert_case, check, parameters
from refmeta.conformance.report import Report, Row, Verdict

__all__ = ["Case", "Report", "Row", "Skip", "Verdict", "assert_case", "audit", "check", "parameters"]
