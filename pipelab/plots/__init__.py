"""Pictures of pipelab's values.

Every `plot_*` takes `ax=` and returns the `Axes`; every picture can say itself in words (`describe_*`).
"""
