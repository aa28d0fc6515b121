"""One file a command; each holds `app`, a typer application with one command."""
