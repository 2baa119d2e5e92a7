"""The record that a run leaves: its form, reading it again, and many of them as rows of a table."""
