"""Statistics of paired outcomes: intervals, tests, power, flips, damage brought back. Nothing here knows a record."""
