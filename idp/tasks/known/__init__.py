"""Task suites: what is known of sets of tasks beside how lm-eval defines them. One file each."""
