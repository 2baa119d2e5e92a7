"""Ways to make a bank whose prompts differ for a reason. One file each."""
