"""``scripts/fuzz_harmonize``: as many mutations as are asked for, side by side, and what came of
them.

Cases run in processes that may die (a damaged file can bring a C library down) or hang: both are
findings, and the next process goes on with the seeds that are left.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path

import fuzz_harmonize
from fuzz_harmonize import Case, Verdict

LIMIT_S = 60.0
"""A case takes a third of a second; one that takes this long hangs."""

_KINDS = ("bytes", "attributes", "axes", "values", "files")
_SHOWN = 40


@dataclass
class Total:
    """Counts of mutations by (kind, outcome), and everything that was wrong."""

    cases: int = 0
    mutations: int = 0
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    findings: list[Verdict] = field(default_factory=list)

    def add(self, case: Case) -> None:
        self.cases += 1
        said = set()
        for verdict in case.verdicts:
            if verdict.kind != "none":
                self.mutations += 1
                self.outcomes[verdict.kind, "FINDING" if verdict.wrong else verdict.outcome] += 1
            if verdict.wrong and verdict.wrong not in said:
                said.add(verdict.wrong)
                self.findings.append(verdict)


def workshop() -> tempfile.TemporaryDirectory[str]:
    """A folder in memory where there is room."""
    memory = Path("/dev/shm")
    usable = memory.is_dir() and os.access(memory, os.W_OK)
    return tempfile.TemporaryDirectory(prefix="fuzz-", dir=memory if usable else None)


def run_here(seeds: Iterable[int]) -> Iterator[Case]:
    """The cases of some seeds, one after the other in this process."""
    with workshop() as name, fuzz_harmonize.native_stores():
        for seed in seeds:
            top = Path(name) / "case"
            fuzz_harmonize.clear(top)
            yield fuzz_harmonize.run_seed(seed, top)


def _work(seeds: Sequence[int], pipe: Connection, top: str) -> None:
    os.nice(5)
    with fuzz_harmonize.native_stores():
        for seed in seeds:
            pipe.send(seed)
            here = Path(top) / str(seed)
            fuzz_harmonize.clear(here)
            pipe.send(fuzz_harmonize.run_seed(seed, here))
            fuzz_harmonize.clear(here)
    pipe.send(None)


@dataclass
class _Worker:
    """A process with its seeds; ``seed``: the one it is at, ``begun`` when."""

    seeds: list[int]
    top: str
    seed: int | None = None
    begun: float = 0.0

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(self.seeds, theirs, self.top))
        self.process.start()
        theirs.close()
        self.seed, self.begun = None, time.monotonic()

    def lost(self, wrong: str) -> Case:
        """The case it died in; it starts again behind it."""
        self.process.kill()
        self.process.join()
        seed = self.seed if self.seed is not None else self.seeds[0]
        self.seeds = [s for s in self.seeds if s > seed]
        return Case(seed, [Verdict(seed, "", "bytes", "any", "", "", wrong)])


def run_many(count: int, first: int, processes: int) -> Total:
    """Cases from seed ``first`` on until there were ``count`` mutations; progress on stderr."""
    total, begun = Total(), time.monotonic()
    # About two and a half mutations in a case; what is too many is not started.
    cases = -(-2 * count // 5)
    with workshop() as top:
        workers = [
            _Worker(list(range(first + i, first + cases, processes)), top)
            for i in range(min(processes, cases))
        ]
        for worker in workers:
            worker.start()
        while workers:
            ready = wait([w.pipe for w in workers], timeout=1.0)
            for worker in list(workers):
                case: Case | None = None
                if worker.pipe in ready:
                    try:
                        said = worker.pipe.recv()
                    except (EOFError, OSError):
                        worker.process.join()
                        case = worker.lost(f"the process died ({worker.process.exitcode})")
                    else:
                        if said is None:
                            worker.process.join()
                            workers.remove(worker)
                        elif isinstance(said, int):
                            worker.seed, worker.begun = said, time.monotonic()
                        else:
                            case = said
                            worker.seeds.remove(said.seed)
                elif time.monotonic() - worker.begun > LIMIT_S:
                    case = worker.lost(f"no end within {LIMIT_S:.0f} s")
                if case is None:
                    continue
                total.add(case)
                for verdict in (v for v in case.verdicts if v.wrong):
                    print(verdict, file=sys.stderr, flush=True)
                if not worker.process.is_alive() and worker in workers:
                    if worker.seeds:
                        worker.start()
                    elif case.verdicts[0].mutation == "any":
                        workers.remove(worker)
                if total.cases % 50 == 0:
                    seconds = time.monotonic() - begun
                    print(
                        f"{total.cases} of {cases} cases, {total.mutations} mutations,"
                        f" {len(total.findings)} findings, {seconds:.0f} s",
                        file=sys.stderr, flush=True,
                    )  # fmt: skip
    return total


def replay(seed: int) -> int:
    """Show everything about one case."""
    (case,) = run_here([seed])
    print("\n".join(case.report))
    print(f"\nseed {seed}:")
    for verdict in case.verdicts:
        print(f"  {verdict}")
    return 1 if any(v.wrong for v in case.verdicts) else 0


def table(total: Total) -> str:
    """Mutations by outcome, a column for each kind."""
    names = sorted({outcome for _, outcome in total.outcomes})
    width = max(map(len, names), default=0)
    lines = [" ".join([" " * width, *(f"{k:>10}" for k in _KINDS), "       all"])]
    for name in names:
        counts = [total.outcomes[kind, name] for kind in _KINDS]
        lines.append(" ".join([f"{name:{width}}", *(f"{n:10}" for n in (*counts, sum(counts)))]))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/fuzz_harmonize",
        description="Damage valid submissions in every way, harmonize them, and see that nothing"
        " crashes or hangs and that nothing wrong is accepted silently.",
    )
    parser.add_argument("count", nargs="?", type=int, default=1000, help="mutations (1000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first case (0)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--replay", type=int, metavar="SEED", help="show everything about one")
    options = parser.parse_args(arguments)
    if options.replay is not None:
        return replay(options.replay)
    begun = time.monotonic()
    total = run_many(options.count, options.seed, options.processes)
    print(table(total))
    for verdict in sorted(total.findings, key=lambda v: v.seed)[:_SHOWN]:
        print(verdict)
    seconds = time.monotonic() - begun
    print(
        f"{total.mutations} mutations in {total.cases} submissions: {len(total.findings)} findings,"
        f" {seconds:.0f} s ({total.mutations / seconds:.1f} a second)"
    )
    if total.findings:
        first = min(v.seed for v in total.findings)
        print(f"show one: scripts/fuzz_harmonize --replay {first}")
    return 1 if total.findings else 0


if __name__ == "__main__":
    sys.exit(main())
