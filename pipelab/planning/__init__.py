"""Looking for good plans: where to cut, in how many micro-batches, in which order.

Calls core; knows no torch.
"""
