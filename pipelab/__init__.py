"""pipelab: pipeline parallelism in PyTorch, in a notebook.

    Model -> Profile -> Split -> Schedule -> Plan -> Trace -> Report -> plot / widget

A schedule is data, written once; the simulator, the engines, the plots and the widgets all read it. `import
pipelab` loads next to nothing: each name below loads its module when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelab.core import theory as theory
    from pipelab.core.actions import Action as Action
    from pipelab.core.actions import Kind as Kind
    from pipelab.core.comparison import Comparison as Comparison
    from pipelab.core.comparison import compare as compare
    from pipelab.core.costs import Costs as Costs
    from pipelab.core.costs import Links as Links
    from pipelab.core.costs import StageBytes as StageBytes
    from pipelab.core.feed import Feed as Feed
    from pipelab.core.gap import explain_gap as explain_gap
    from pipelab.core.interchange.json_files import load as load
    from pipelab.core.interchange.other_traces import read_trace as read_trace
    from pipelab.core.list_schedule import list_schedule as list_schedule
    from pipelab.core.placement import Placement as Placement
    from pipelab.core.plan import Plan as Plan
    from pipelab.core.plan import virtual as virtual
    from pipelab.core.profile import Profile as Profile
    from pipelab.core.report import Report as Report
    from pipelab.core.schedule import Schedule as Schedule
    from pipelab.core.schedules import SCHEDULES as SCHEDULES
    from pipelab.core.schedules import schedule as schedule
    from pipelab.core.simulation import period as period
    from pipelab.core.simulation import simulate as simulate
    from pipelab.core.simulation import simulate_many as simulate_many
    from pipelab.core.split import Split as Split
    from pipelab.core.trace import Trace as Trace
    from pipelab.errors import PipelabError as PipelabError
    from pipelab.errors import PipelabWarning as PipelabWarning
    from pipelab.planning.balance import balance as balance
    from pipelab.planning.sweep import sweep as sweep
    from pipelab.plots.gap import plot_gap as plot_gap
    from pipelab.plots.memory import plot_memory as plot_memory
    from pipelab.plots.stages import plot_stages as plot_stages
    from pipelab.plots.sweep import plot_sweep as plot_sweep
    from pipelab.plots.timeline import plot_timeline as plot_timeline
    from pipelab.plots.timeline import plot_timelines as plot_timelines
    from pipelab.runtime import zoo as zoo
    from pipelab.runtime.allocator import tune_allocator as tune_allocator
    from pipelab.runtime.check import check_gradients as check_gradients
    from pipelab.runtime.inputs import Args as Args
    from pipelab.runtime.layers import layers as layers
    from pipelab.runtime.links import measure_links as measure_links
    from pipelab.runtime.pipeline import Pipeline as Pipeline
    from pipelab.runtime.profiling import profile as profile
    from pipelab.runtime.step import Step as Step
    from pipelab.runtime.train import train as train
    from pipelab.runtime.training import Training as Training
    from pipelab.runtime.trees import replicate as replicate
    from pipelab.teaching import exercise as exercise
    from pipelab.widgets.compare_view import CompareView as CompareView
    from pipelab.widgets.lab import Lab as Lab
    from pipelab.widgets.split_editor import SplitEditor as SplitEditor
    from pipelab.widgets.step_view import StepView as StepView
    from pipelab.widgets.timeline_view import TimelineView as TimelineView

__version__ = "0.1.0"

_HOMES = {
    "Action": "pipelab.core.actions",
    "Args": "pipelab.runtime.inputs",
    "CompareView": "pipelab.widgets.compare_view",
    "Comparison": "pipelab.core.comparison",
    "Costs": "pipelab.core.costs",
    "Feed": "pipelab.core.feed",
    "Kind": "pipelab.core.actions",
    "Lab": "pipelab.widgets.lab",
    "Links": "pipelab.core.costs",
    "PipelabError": "pipelab.errors",
    "PipelabWarning": "pipelab.errors",
    "Pipeline": "pipelab.runtime.pipeline",
    "Placement": "pipelab.core.placement",
    "Plan": "pipelab.core.plan",
    "Profile": "pipelab.core.profile",
    "Report": "pipelab.core.report",
    "SCHEDULES": "pipelab.core.schedules",
    "Schedule": "pipelab.core.schedule",
    "Split": "pipelab.core.split",
    "SplitEditor": "pipelab.widgets.split_editor",
    "StageBytes": "pipelab.core.costs",
    "Step": "pipelab.runtime.step",
    "StepView": "pipelab.widgets.step_view",
    "TimelineView": "pipelab.widgets.timeline_view",
    "Trace": "pipelab.core.trace",
    "Training": "pipelab.runtime.training",
    "balance": "pipelab.planning.balance",
    "check_gradients": "pipelab.runtime.check",
    "compare": "pipelab.core.comparison",
    "exercise": "pipelab.teaching",
    "explain_gap": "pipelab.core.gap",
    "layers": "pipelab.runtime.layers",
    "list_schedule": "pipelab.core.list_schedule",
    "load": "pipelab.core.interchange.json_files",
    "measure_links": "pipelab.runtime.links",
    "period": "pipelab.core.simulation",
    "plot_gap": "pipelab.plots.gap",
    "plot_memory": "pipelab.plots.memory",
    "plot_stages": "pipelab.plots.stages",
    "plot_sweep": "pipelab.plots.sweep",
    "plot_timeline": "pipelab.plots.timeline",
    "plot_timelines": "pipelab.plots.timeline",
    "profile": "pipelab.runtime.profiling",
    "read_trace": "pipelab.core.interchange.other_traces",
    "replicate": "pipelab.runtime.trees",
    "schedule": "pipelab.core.schedules",
    "simulate": "pipelab.core.simulation",
    "simulate_many": "pipelab.core.simulation",
    "sweep": "pipelab.planning.sweep",
    "tune_allocator": "pipelab.runtime.allocator",
    "train": "pipelab.runtime.train",
    "virtual": "pipelab.core.plan",
}
"""The module of each public name."""

_MODULES = {"theory": "pipelab.core.theory", "zoo": "pipelab.runtime.zoo"}
"""Public names that are modules themselves."""

__all__ = sorted([*_HOMES, *_MODULES])


def __getattr__(name: str) -> object:
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    elif name in _MODULES:
        value = import_module(_MODULES[name])
    else:
        from pipelab.errors import nearest

        near = nearest(name, __all__)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise AttributeError(f"module 'pipelab' has no attribute {name!r}.{hint}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
