"""Settings of `make export`: the layout of its files, and their licence."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ExportConfig:
    """Settings of the exported files. shard_gb: size in GB above which a transformer is written in several files.
    licence: licence of the weights, an identifier of Hugging Face's hub; "" takes apache-2.0, or "other" where the
    licence of the tracker of the real clips permits noncommercial use only (docs/licences.md)."""

    shard_gb: float = 5.0
    licence: str = ""

    def problems(self) -> list[str]:
        """Returns every inconsistency, as 'export.field: what is wrong and how to fix it'."""
        out = []
        if self.shard_gb <= 0:
            out.append(f"export.shard_gb: {self.shard_gb} must be positive")
        if self.licence != self.licence.strip():
            out.append(
                f"export.licence: {self.licence!r} has blanks around it; name one of the hub's, as apache-2.0 or other"
            )
        return out
