"""Graph languages: what each one reads, writes and runs."""
