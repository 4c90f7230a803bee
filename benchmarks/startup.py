"""How long `ouro --help` takes beside `python -c pass` and `import torch`: medians of calls made in turn."""

import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "ouro --help": [sys.executable, "-m", "ouroboros_cli", "--help"],
    "import torch": [sys.executable, "-c", "import torch"],
}


def seconds(command: list[str]) -> float:
    """Of one call."""
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def main(rounds: int = 9) -> None:
    """Print the medians, in seconds."""
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, command in COMMANDS.items():
            taken[name].append(seconds(command))
    for name, times in taken.items():
        print(f"{name:16} {statistics.median(times):.2f} s")


if __name__ == "__main__":
    main()
