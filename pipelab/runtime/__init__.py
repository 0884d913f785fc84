"""Runs a plan on real devices: profiling, cutting, the engines, clocks, checks. The only layer that knows torch."""
