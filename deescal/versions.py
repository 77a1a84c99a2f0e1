"""Versions of packages, as runs write them down."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version


def installed_version(package: str) -> str | None:
    """None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Of those that are installed: of vLLM, say, there is one for GPUs and one for CPUs."""
    return {package: found for package in packages if (found := installed_version(package))}
