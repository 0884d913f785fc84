"""The heart of pipelab: schedules as data, and everything that follows from them.

Standard library and numpy only.

A newcomer may read the modules in this order:

    actions       what a rank can do: F, I, W, B, U, and their overlap
    placement     which rank holds which stage, which stage feeds which
    dependencies  what an action needs: stated once, for everyone
    schedule      the order of each rank, checked by `validation` when it is made (`deadlock`: what it says
                  then); `grid`: drawn with characters; `schedule_text`, `cells`: as text
    schedules     every named schedule, one family a module
    list_schedule an order from a rule and a cap: `jobs` put in order by `dispatch`, made shorter by `local_search`
    costs         seconds and bytes per stage, and the links
    recurrence    the longest path, compiled once per schedule; `workload`: its distinct durations
    feed          how micro-batches are loaded and prepared; `intake`: in which order they come
    lanes         links that take turns, updates and a feed, compiled into the same recurrence
    simulation    costs in, trace out; the period of chained steps, by `max_plus`
    trace         when each action started and ended, simulated or measured; `trace_dict`: as plain values
    memory        what each rank holds over time
    report        makespan, the four bubbles, peaks, what is sent; `comparison`: several side by side
    causes        idle time by cause, down to the `lower_bound` of any order
    critical_path what makes the step as long as it is; `why`: what a rank waits for at a moment
    theory        closed forms with their papers and assumptions
    profile       costs per layer; `split`: the cut points; `plan`: all that an engine needs
    strict_json   files from strangers
    interchange   every format in and out: torch's tables, JSON, traces of Chrome, Perfetto and torch.profiler
    tables        how values print, with `quantities`: 12.3 ms, 4 MiB, 27.3 %
"""
