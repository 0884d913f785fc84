"""Widgets: thin views over values. Whatever a mouse can do, one line of code can do."""
