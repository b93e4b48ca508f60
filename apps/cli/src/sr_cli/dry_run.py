"""What ``sr-distill train --dry-run`` prints."""

from __future__ import annotations

from distill.config import AnyRun, to_yaml
from distill.dry_run import Plan, plan


def print_dry_run(config: AnyRun) -> None:
    """Print the resolved configuration and what the run would do."""
    print(to_yaml(config))
    print("\n".join(describe(config, plan(config))))


def describe(config: AnyRun, found: Plan) -> list[str]:
    """The plan in lines."""
    lines = ["parameters that are trained:"]
    lines += [f"  {name:<12} {count:>13,}" for name, count in found.parameters.items()]
    lines += ["optimizer updates:"]
    lines += [f"  {name:<12} {count:>13,}" for name, count in found.updates.items()]
    micro = config.batch_size // (found.accumulate * found.processes)
    lines += [
        f"images: {found.images:,} ({config.batch_size} an update: {found.processes} process(es) x "
        f"{found.accumulate} micro-batch(es) of {micro})",
        f"memory forecast for one process on {found.device}: {_size(found.memory.total_bytes)}, of which",
    ]
    lines += [f"  {name:<22} {_size(size):>9}" for name, size in found.memory.by_part.items() if size >= 1 << 20]
    if found.memory.baseline_bytes:
        lines.append(f"  {'loaded libraries':<22} {_size(found.memory.baseline_bytes):>9}")
    if found.missing:
        lines += ["not here yet:", *(f"  {line}" for line in found.missing)]
    return lines


def _size(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 1 << 30 else f"{size / 2**20:.0f} MiB"
