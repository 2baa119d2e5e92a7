"""Tasks: which ones there are, where their documents come from, and how they are put into words."""
