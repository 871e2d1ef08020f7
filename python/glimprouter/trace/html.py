"""A trace as one HTML page: no network, no script, everything from the trace escaped.

The page is well-formed XML as well, so that a test can parse it strictly.
"""

from __future__ import annotations

import html
import math

from glimprouter.trace.chart import draws_threshold, entropy_chart, format_nats, mark_path
from glimprouter.trace.record import Trace, TraceStep
from glimprouter.trace.totals import (
    Totals,
    TraceTotals,
    deciding_rule,
    format_share,
    settings_recorded,
    unfinished_reason,
)
from glimprouter.visible_text import neutralise

__all__ = ["trace_to_html"]

# The writers' colours are Okabe and Ito's blue and vermilion, darkened or lightened until text in
# them has a contrast of at least 4.5 : 1 with the background.
STYLE = """
:root { color-scheme: light dark; --paper: #fdfdfc; --ink: #22252a; --soft: #636973;
  --line: #dfe1e5; --panel: #f4f5f6; --small: #00578a; --large: #a83f00; --alert: #fbe9e3; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181c; --ink: #e4e6ea; --soft: #9aa1ac;
  --line: #343941; --panel: #1f2227; --small: #7cc4f2; --large: #ffb067; --alert: #3a241c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 64rem; padding: 2.5rem 1.5rem 4rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial,
  sans-serif; }
h1 { margin: 0; font-size: 1.5rem; font-weight: 650; letter-spacing: -0.01em; }
h2 { margin: 2.75rem 0 0.75rem; font-size: 1.05rem; font-weight: 650; }
.summary { margin: 0.25rem 0 0; color: var(--soft); }
.note { color: var(--soft); font-size: 0.875rem; }
.alert { margin: 1.25rem 0 0; padding: 0.7rem 1rem; background: var(--alert);
  border-left: 4px solid var(--large); }
.quote { margin: 0; padding: 0.8rem 1rem; background: var(--panel); border-radius: 4px; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; }
figure { margin: 0; }
.scroll { overflow-x: auto; }
.scroll svg { min-width: 40rem; }
figcaption { display: flex; flex-wrap: wrap; gap: 0.25rem 1.5rem; margin-top: 0.35rem;
  color: var(--soft); font-size: 0.875rem; }
svg { display: block; width: 100%; height: auto; }
svg.key { display: inline-block; width: 0.85rem; height: 0.85rem; margin-right: 0.4rem;
  vertical-align: -0.08rem; }
svg text { font-size: 12.5px; fill: var(--soft); font-variant-numeric: tabular-nums; }
.grid { stroke: var(--line); }
.stems { stroke: var(--soft); stroke-opacity: 0.28; fill: none; }
.mark.small { fill: var(--paper); stroke: var(--small); stroke-width: 1.5; }
.mark.large { fill: var(--large); stroke: var(--large); stroke-width: 1.5; }
.tau { stroke: var(--ink); stroke-width: 1.25; stroke-dasharray: 6 4; fill: none;
  pointer-events: none; }
svg .tau-label { fill: var(--ink); paint-order: stroke; stroke: var(--paper); stroke-width: 5px;
  stroke-linejoin: round; }
table { width: 100%; border-collapse: collapse; }
th { color: var(--soft); font-size: 0.8125rem; font-weight: 550; text-align: left;
  vertical-align: bottom; }
th, td { padding: 0.4rem 0.6rem; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { padding-left: 0; }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.sum td { font-weight: 650; }
td { vertical-align: top; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.2rem 1.25rem; margin: 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
.writer { display: inline-block; min-width: 3.3rem; padding: 0 0.4rem; border-radius: 3px;
  border: 1px solid currentColor; font-size: 0.75rem; line-height: 1.25rem; text-align: center;
  vertical-align: 0.06rem; }
.small { color: var(--small); }
.large { color: var(--large); }
.writer.large { background: var(--large); border-color: var(--large); color: var(--paper);
  font-weight: 650; }
.chain td { font-size: 0.875rem; line-height: 1.6rem; color: var(--soft); }
.chain td.words { width: 100%; padding-left: 0.9rem; font-size: 1rem; line-height: 1.6rem; }
.chain th.words { padding-left: 0.9rem; }
.chain tr:target { background: var(--panel); }
td.words.small, .quote.small { border-left: 2px dotted var(--small); color: var(--small); }
td.words.large, .quote.large { border-left: 5px solid var(--large); color: var(--large); }
td.words.small { padding-left: calc(0.9rem + 1.5px); }
.chain td:nth-last-child(2), .chain th:nth-last-child(2) { padding-right: 0.9rem; }
.empty { font-style: italic; opacity: 0.75; }
.answer .note { margin: 0 0 0.5rem; }
@media (max-width: 44rem) {
  .chain thead { display: none; }
  .chain tr { display: flex; flex-wrap: wrap; gap: 0 0.9rem; padding: 0.5rem 0;
    border-bottom: 1px solid var(--line); }
  .chain td { padding: 0; border: 0; }
  .chain td.words { flex-basis: 100%; padding-left: 0.7rem; }
  .chain td[data-unit]::after { content: " " attr(data-unit); }
}
@media print { body { padding: 0; max-width: none; } tr { break-inside: avoid; } }
"""

_ENDS = {
    "delimiter": "end of the step",
    "cap": "the step's token limit",
    "think_end": "end of the thinking",
    "budget": "thinking budget used up",
    "repetition": "the steps repeated each other",
    "eos": "end of the sequence",
    "answer_budget": "answer budget used up",
    "interrupted": "interrupted",
    "none": "not recorded",
}
_SILENT_ENDS = ("delimiter", "none")  # ordinary, or nothing to say


def escape(text: str) -> str:
    """Untrusted text for an element or an attribute: visible characters, HTML's own quoted."""
    return html.escape(neutralise(text), quote=True)


def _block(text: str, css_class: str = "text") -> str:
    """Untrusted text of several lines; directions of writing stay inside of it."""
    content = escape(text.strip("\n"))
    if not content.strip():
        content = '<span class="empty">(empty)</span>'
    return f'<div class="{css_class}" dir="auto">{content}</div>'


def _end(reason: str) -> str:
    return _ENDS.get(reason) or escape(reason)


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds else "-"


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.1f}" if seconds else "-"


def _pace(seconds: float, tokens: int) -> str:
    """Milliseconds a token, or a dash."""
    return _milliseconds(seconds / tokens) if tokens else "-"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _header(trace: Trace, totals: TraceTotals, note: str | None) -> str:
    facts = [
        _counted(len(trace.steps), "step"),
        f"{totals.large.steps:,} by the large model",
        _counted(trace.total_tokens, "token"),
    ]
    if totals.seconds:
        facts.append(_seconds(totals.seconds))
    parts = [
        "<h1>Chain of thought, step by step</h1>",
        f'<p class="summary">{" · ".join(facts)}</p>',
    ]
    if note is not None:
        parts.append(f'<p class="note">{escape(note)}</p>')
    if (reason := unfinished_reason(trace)) is not None:
        word = "Failed" if trace.end_reason == "error" else "Not finished"
        parts.append(
            f'<p class="alert" role="status" dir="auto"><strong>{word}:</strong> {escape(reason)}. '
            "What follows is what was written until then.</p>"
        )
    if trace.prompt is not None:
        parts.append(f"<h2>Prompt</h2>\n{_block(trace.prompt, 'quote text')}")
    return "\n".join(parts)


def _key(model: str, label: str) -> str:
    mark = f'<path class="mark {model}" d="{mark_path(model, 7, 7, 4.5)}"/>'
    return (
        f'<span><svg class="key" viewBox="0 0 14 14" aria-hidden="true">{mark}</svg>{label}</span>'
    )


def _threshold_remark(trace: Trace) -> str:
    """What the dashed line is, or why there is none."""
    if not settings_recorded(trace):
        return "tau is not recorded"
    if trace.policy is not None:
        return escape(deciding_rule(trace))
    if math.isinf(trace.threshold):
        return "tau is infinite: no entropy is above it"
    if any(step.threshold != trace.threshold for step in trace.steps):
        return "dashed: tau, which changes between the steps"
    place = "dashed" if draws_threshold(trace.steps) else "above the chart"
    return f"{place}: tau = {trace.threshold:g} nats"


def _timeline(trace: Trace) -> str:
    if not trace.steps:
        return '<h2>Entropy of each glimpse</h2>\n<p class="note">There are no steps.</p>'
    keys = [_key("small", "small model"), _key("large", "large model")]
    remarks = [f"<span>{_threshold_remark(trace)}</span>"]
    unseen = sum(step.entropy is None for step in trace.steps)
    if unseen:
        remarks.append(f"<span>none: no glimpse ({_counted(unseen, 'step')})</span>")
    return (
        '<h2>Entropy of each glimpse</h2>\n<figure>\n<div class="scroll">'
        f"{entropy_chart(trace.steps)}</div>\n"
        f"<figcaption>{''.join(keys + remarks)}</figcaption>\n</figure>"
    )


def _row(cells: list[str], css_class: str = "") -> str:
    first, *figures = cells
    numbers = "".join(f'<td class="number">{figure}</td>' for figure in figures)
    return f'<tr class="{css_class}"><td>{first}</td>{numbers}</tr>'


def _writer_label(model: str) -> str:
    return f'<span class="writer {model}">{model}</span>'


def _totals_row(label: str, part: Totals, whole: Totals) -> list[str]:
    return [
        label,
        f"{part.steps:,}",
        format_share(part.steps, whole.steps),
        f"{part.tokens:,}",
        format_share(part.tokens, whole.tokens),
        _seconds(part.seconds),
        _pace(part.seconds, part.tokens),
    ]


def _totals_table(trace: Trace, totals: TraceTotals) -> str:
    headings = ["", "steps", "share", "tokens", "share", "time", "ms a token"]
    head = "".join(f'<th class="number" scope="col">{heading}</th>' for heading in headings[1:])
    answer = _row(
        [
            f"answer {_writer_label(trace.answer_model)}",
            *("", "", f"{trace.answer_tokens:,}", ""),
            _seconds(trace.answer_seconds),
            _pace(trace.answer_seconds, trace.answer_tokens),
        ]
    )
    rows = [
        _row(_totals_row(_writer_label("small"), totals.small, totals.thinking)),
        _row(_totals_row(_writer_label("large"), totals.large, totals.thinking)),
        _row(_totals_row("thinking", totals.thinking, totals.thinking), "sum"),
        answer,
    ]
    if totals.closing_tokens:
        closing = ["closing of the thinking", "", "", f"{totals.closing_tokens:,}", "", "", ""]
        rows.append(_row(closing))
    seconds, pace = totals.seconds, _pace(totals.seconds, trace.total_tokens)
    rows.append(
        _row(["all", "", "", f"{trace.total_tokens:,}", "", _seconds(seconds), pace], "sum")
    )
    body = "\n".join(rows)
    return (
        f'<div class="scroll"><table>\n<thead><tr><th></th>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def _facts(trace: Trace) -> str:
    facts = [("ended by", _end(trace.end_reason))]
    if settings_recorded(trace):
        tau = "infinite" if math.isinf(trace.threshold) else f"{trace.threshold:g} nats"
        facts += [
            ("tau", tau) if trace.policy is None else ("policy", escape(trace.policy)),
            ("seed", f"{trace.seed} (substream {trace.substream})"),
            ("thinking budget", _counted(trace.think_limit, "token")),
        ]
    else:
        facts.append(("tau, seed, limits", "not recorded"))
    items = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts)
    return f'<dl class="facts">{items}</dl>'


def _writers_remark(step: TraceStep) -> str | None:
    """What is worth saying of a step that both models wrote at, or one after the other."""
    remarks = []
    if step.model == "large" and len(step.runs) > 2:
        remarks.append(f"the small model went on behind {_counted(step.runs[1], 'token')}")
    if step.rewritten:
        remarks.append(f"the small model's {_counted(step.rewritten, 'token')} were rejected")
    if step.score is not None:
        remarks.append(f"its score is {step.score:g}")
    return "; ".join(remarks) or None


def _step(position: int, step: TraceStep) -> str:
    text = _block(step.text)
    if step.end_reason not in _SILENT_ENDS:
        text += f'<div class="note">ended by: {_end(step.end_reason)}</div>'
    if (remark := _writers_remark(step)) is not None:
        text += f'<div class="note">{remark}</div>'
    cells = (
        ("nats", format_nats(step.entropy)),
        ("tokens", f"{step.num_tokens:,}"),
        ("ms", _milliseconds(step.seconds)),
    )
    numbers = "".join(
        f'<td class="number" data-unit="{"" if figure == "-" else unit}">{figure}</td>'
        for unit, figure in cells
    )
    return (
        f'<tr id="step-{position}"><td class="number">{position}</td>'
        f"<td>{_writer_label(step.model)}</td>{numbers}"
        f'<td class="words {step.model}">{text}</td></tr>'
    )


def _chain(trace: Trace) -> str:
    if not trace.steps:
        return ""
    headings = ["H (nats)", "tokens", "ms"]
    numbers = "".join(f'<th class="number" scope="col">{heading}</th>' for heading in headings)
    body = "\n".join(_step(position, step) for position, step in enumerate(trace.steps))
    return (
        '<h2>Thinking</h2>\n<table class="chain">\n<thead><tr><th class="number" scope="col">step'
        f'</th><th scope="col">writer</th>{numbers}<th class="words" scope="col">text</th></tr>'
        f"</thead>\n<tbody>\n{body}\n</tbody>\n</table>"
    )


def _answer(trace: Trace) -> str:
    if not trace.answer and not trace.answer_tokens:
        return '<h2>Answer</h2>\n<p class="note">There is no answer.</p>'
    detail = f"{_writer_label(trace.answer_model)} {_counted(trace.answer_tokens, 'token')}"
    if trace.answer_seconds:
        detail += f" · {_seconds(trace.answer_seconds)}"
    block = _block(trace.answer, f"quote text {trace.answer_model}")
    return f'<h2>Answer</h2>\n<div class="answer"><p class="note">{detail}</p>\n{block}</div>'


def trace_to_html(trace: Trace, *, note: str | None = None) -> str:
    """The page.

    Args:
        trace: Also an interrupted or failed one, and one without steps; the page then says so.
        note: A remark under the title, such as where the trace comes from.

    Returns:
        One HTML document with inline style and drawing, which needs nothing else and runs nothing.
    """
    totals = TraceTotals.of(trace)
    sections = [
        _header(trace, totals, note),
        _timeline(trace),
        f"<h2>Totals</h2>\n{_totals_table(trace, totals)}\n<h2>Run</h2>\n{_facts(trace)}",
        _chain(trace),
        _answer(trace),
    ]
    body = "\n".join(section for section in sections if section)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        '<meta name="color-scheme" content="light dark"/>\n<title>glimprouter trace</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )
