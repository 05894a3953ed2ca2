"""Measurements that end in a table: each writes JSON, Markdown and plots beside what it printed."""
