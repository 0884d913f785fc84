"""What a timeline says in words: the headline above it, and all of it for those who do not see it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipelab.core.quantities import as_bytes, as_percent, as_seconds
from pipelab.core.report import Report
from pipelab.core.trace import Trace
from pipelab.plots.wording import counted, devices_text, literal

DEFINITION = "bubble_fraction = idle / (ranks × makespan)"
MICROBATCHES = ("micro-batch", "micro-batches")


def headline(trace: Trace, report: Report, remark: str = "", predicted: Trace | None = None) -> str:
    """The lines above one timeline: what it is, its numbers, the clock, the definition, what is to be noted.

    Args:
        predicted: what lies over it as outlines: by how much the makespans differ is said too.
    """
    numbers = _numbers(report)
    if predicted is not None and predicted.makespan > 0:
        verb = "measured " if predicted.clock == "simulated" != trace.clock else ""
        numbers = f"{verb}{_against(report.makespan, predicted.makespan)}, {_bubble(report)}"
    lines = [f"{_what(trace)}: {numbers}", f"{_clock(trace)} · {DEFINITION}"]
    if note := remark or "".join(trace.notes[:1]):
        lines.append(literal(note, 110))
    return "\n".join(lines)


def row_header(trace: Trace, report: Report, remark: str = "") -> str:
    """The line above the rows of one timeline among several."""
    line = f"{literal(trace.label)}: {_numbers(report)} · {_clock(trace)}"
    return f"{line} · {literal(remark, 80)}" if remark else line


def comparison_headline(traces: Sequence[Trace], reports: Sequence[Report], same_plan: bool = True) -> str:
    """The lines above several timelines: by how much they differ, and the definition."""
    same_plan = same_plan and all(trace.schedule == traces[0].schedule for trace in traces)
    clocks = ", ".join(dict.fromkeys(trace.clock for trace in traces))
    kind = "clock" if len({trace.clock for trace in traces}) == 1 else "clocks"
    return f"{_difference(traces, reports, same_plan)}\n{kind}: {clocks} · {DEFINITION}"


def _difference(traces: Sequence[Trace], reports: Sequence[Report], same_plan: bool) -> str:
    spans = [report.makespan for report in reports]
    if len(traces) == 2 and same_plan and traces[0].clock == "simulated" != traces[1].clock and spans[0] > 0:
        return f"measured {_against(spans[1], spans[0])}"
    how_many = f"{counted(len(traces), 'timeline')} on one time axis"
    if (
        len({trace.clock for trace in traces}) > 1
    ):  # a measured step is no worse schedule than a predicted one
        return f"{how_many}, of different clocks"
    best = min(range(len(spans)), key=spans.__getitem__)
    first = [k for k, span in enumerate(spans) if math.isclose(span, spans[best], rel_tol=1e-9)]
    if len(first) == len(traces) > 1:
        return f"{how_many}, equally long: {as_seconds(spans[best])}"
    names = ", ".join(literal(traces[k].label, 40) for k in first)
    return f"{how_many}; shortest: {names}, {_numbers(reports[best]) if len(first) == 1 else as_seconds(spans[best])}"


def describe_timeline(trace: Trace, report: Report | None = None, *, most_ranks: int = 8) -> str:
    """The timeline in sentences: the alternative text of its picture.

    Args:
        report: of the trace, where it is already known.
        most_ranks: a pipeline of more ranks is described by its first and last ones.

    Example:
        >>> import pipelab as pp
        >>> schedule = pp.schedule("gpipe", num_ranks=2, num_microbatches=2)
        >>> text = describe_timeline(pp.simulate(schedule, pp.Costs.uniform(2)))
        >>> print(text.partition(" Rank 0")[0])
        Timeline of gpipe: 2 ranks, 2 micro-batches, simulated clock. Makespan 9 s, bubble_fraction 33.3 %.
    """
    report = trace.report() if report is None else report
    sentences = [
        f"Timeline of {trace.label}: {_sizes(trace)}, {_clock(trace)}.",
        f"Makespan {as_seconds(report.makespan)}, bubble_fraction {as_percent(report.bubble_fraction)}.",
    ]
    ranks = range(trace.num_ranks)
    shown = ranks if trace.num_ranks <= most_ranks else [*ranks[: most_ranks - 1], ranks[-1]]
    for rank in shown:
        busy, idle = as_seconds(report.busy[rank]), as_seconds(report.bubble_time[rank])
        sentences.append(f"Rank {rank}: busy {busy}, idle {idle}, {_peak(report, rank)}.")
    if trace.num_ranks > most_ranks:
        sentences.insert(-1, f"({trace.num_ranks - most_ranks} ranks left out.)")
    sentences += [f"Note: {note}" for note in trace.notes]
    return " ".join(sentences)


def _peak(report: Report, rank: int) -> str:
    flying = f"at most {counted(report.peak_in_flight[rank], *MICROBATCHES)} in flight"
    if report.peak_bytes is None:
        return flying
    return f"{flying}, {as_bytes(report.peak_bytes[rank])} at the peak"


def _what(trace: Trace) -> str:
    if counted(trace.num_ranks, "rank") in trace.label:  # its sizes are part of its name
        return literal(trace.label, 90)
    return f"{literal(trace.label)} ({_sizes(trace)})"


def _sizes(trace: Trace) -> str:
    return f"{counted(trace.num_ranks, 'rank')}, {counted(trace.schedule.num_microbatches, *MICROBATCHES)}"


def _numbers(report: Report) -> str:
    return f"{as_seconds(report.makespan)}, {_bubble(report)}"


def _bubble(report: Report) -> str:
    return f"bubble_fraction {as_percent(report.bubble_fraction)}"


def _against(makespan: float, predicted: float) -> str:
    change = f"{100 * (makespan / predicted - 1):+.1f} %"
    return f"{as_seconds(makespan)} against predicted {as_seconds(predicted)}: {change}"


def _clock(trace: Trace) -> str:
    text = f"{trace.clock} clock"
    return f"{text}, {literal(devices_text(trace.devices))}" if trace.devices else text
