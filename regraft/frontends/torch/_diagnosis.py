"""From the exceptions that tracing raises to one line: what in the model is at fault, and what to try next."""


def diagnose(error: Exception) -> tuple[str, str]:
    """Return why tracing failed, as a phrase, and a hint."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__), "pass a torch.export.ExportedProgram of the model instead"
