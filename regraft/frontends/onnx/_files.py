"""Files that appear under their names only when all of them are complete."""

import os
import secrets
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self


class PendingFiles:
    """Temporary files in one folder, which take their final names together; without `commit` they vanish."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pending: list[tuple[BinaryIO, Path, Path]] = []

    def open(self, final: Path) -> BinaryIO:
        """Return a file to write what will stand under the name `final`; renamed in the order of these calls."""
        temporary = self._folder / f".{secrets.token_hex(8)}.tmp"
        file = temporary.open("xb")  # with the permissions that any new file gets
        self._pending.append((file, temporary, final))
        return file

    def commit(self) -> None:
        """Bring the contents to the disk, then rename the files."""
        for file, _, _ in self._pending:
            file.flush()
            os.fsync(file.fileno())
            file.close()
        created: list[Path] = []
        try:
            for _, temporary, final in self._pending:
                is_new = not final.exists()
                temporary.replace(final)
                created += [final] if is_new else []
        except OSError:
            for final in created:
                final.unlink(missing_ok=True)
            raise
        self._sync_folder()

    def _sync_folder(self) -> None:
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file, temporary, _ in self._pending:
            file.close()
            temporary.unlink(missing_ok=True)
