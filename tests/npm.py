"""What a test needs from npm: the packages of a lock file, fetched where they aren't there yet."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

IS_THERE = all(shutil.which(program) for program in ("node", "npm"))


def install(folder: Path) -> None:
    """Fetch what the folder's lock file says."""
    installed = folder / "node_modules" / ".package-lock.json"
    if installed.exists() and installed.stat().st_mtime >= (folder / "package-lock.json").stat().st_mtime:
        return
    npm = ["npm", "ci", "--prefix", str(folder), "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(
        [*npm, "--omit=peer", "--omit=optional"], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
