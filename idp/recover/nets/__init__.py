"""What is built on torch when it is imported: encoders of prompts, the loss of an output head. No kinds here."""
