"""Statistics of paired outcomes: intervals, tests, power, flips, the share of damage brought back. Of numbers only: nothing here knows a record."""
