"""Carrying values in and out: every format that pipelab shares with people and other tools.

torch_csv      the table that torch.distributed.pipelining reads and writes
torch_runtime  what torch's runtime would do with a schedule
json_files     every value as strict JSON: `save` and `load`; `columns`: its long arrays of numbers
chrome         a trace for ui.perfetto.dev and chrome://tracing
other_traces   traces of other tools: `read_trace`; `skim`: finding a few events in a file of any length;
               `annotations`: what is kept of one file; `steps`: whole steps out of many events
"""
