"""Whether routing pays: policies over the problems of a task, and a report of it.

:func:`evaluate` runs a :class:`Plan` and writes records; :func:`write_report` turns the records of
one or more folders into a page. Reports need the extra ``evaluate`` (matplotlib, scipy,
scikit-learn); runs need the extra ``hf``.
"""

from __future__ import annotations

from glimprouter.evaluation.on_engines import ENGINE_POLICIES, engines_plan
from glimprouter.evaluation.plan import Plan
from glimprouter.evaluation.record_file import Records, read_records
from glimprouter.evaluation.runner import Progress, evaluate

__all__ = [
    "ENGINE_POLICIES",
    "Plan",
    "Progress",
    "Records",
    "engines_plan",
    "evaluate",
    "read_records",
]
