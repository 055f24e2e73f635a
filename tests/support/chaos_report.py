"""``scripts/chaos``: as many sequences as are asked for, side by side, and what came of them."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field

import chaos
from chaos_plans import CASES, workshop

BATCH = 100
_SHOWN = 20
_LOST = ("not all is done",)
_DOUBLED = ("runs again", "while it runs", "more than one result", "meanwhile", "queued twice")
_STATUS = ("status of", "failed:")


@dataclass
class Total:
    """Sums over sequences; ``bad``: seed, case and complaints where something was wrong."""

    sequences: int = 0
    effects: int = 0
    interrupted: int = 0
    jobs: int = 0
    bad: list[tuple[int, str, tuple[str, ...]]] = field(default_factory=list)

    def add(self, other: Total) -> None:
        self.sequences += other.sequences
        self.effects += other.effects
        self.interrupted += other.interrupted
        self.jobs += other.jobs
        self.bad += other.bad

    def count(self, words: Sequence[str]) -> int:
        """Sequences with a complaint that holds one of these words."""
        return sum(any(w in text for text in wrong for w in words) for _, _, wrong in self.bad)


def run_batch(seeds: Sequence[int]) -> Total:
    """The sequences of some seeds, in a process of their own."""
    total, parent = Total(), multiprocessing.parent_process()
    with workshop() as shop:
        for seed in seeds:
            if parent is not None and not parent.is_alive():
                break
            report = chaos.run_seed(shop, seed)
            total.add(Total(1, report.effects, report.interrupted, report.jobs))
            if report.wrong:
                total.bad.append((seed, report.case, report.wrong))
    return total


def run_many(count: int, first: int, processes: int) -> Total:
    """Sequences ``first`` to ``first + count - 1``; progress goes to stderr."""
    total, begun = Total(), time.monotonic()
    batches = [range(s, min(s + BATCH, first + count)) for s in range(first, first + count, BATCH)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, os.nice, (5,)) as pool:
        for done in as_completed([pool.submit(run_batch, batch) for batch in batches]):
            total.add(done.result())
            for seed, case, wrong in done.result().bad:
                print(f"seed {seed} ({case}): {wrong[0]}", file=sys.stderr, flush=True)
            seconds = time.monotonic() - begun
            print(
                f"{total.sequences} of {count} sequences, {len(total.bad)} bad, {seconds:.0f} s",
                file=sys.stderr, flush=True,
            )  # fmt: skip
    return total


def replay(seed: int) -> int:
    """Show every event of one sequence."""
    with workshop() as shop:
        report = chaos.run_seed(shop, seed, traced=True)
    print("\n".join(report.trace))
    print(f"\nseed {seed} ({report.case}), {len(report.actions)} actions:")
    print("\n".join(f"  {action}" for action in report.actions))
    for text in report.wrong:
        print(f"WRONG: {text}")
    return 1 if report.wrong else 0


def exhaust(processes: int) -> Total:
    """Every crash point of the reference sequence, on every kind of scheduler and plan."""
    total, context = Total(), multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, os.nice, (5,)) as pool:
        for done in as_completed([pool.submit(_exhaust_case, case) for case in CASES]):
            total.add(done.result())
            print(f"{total.sequences} crash points so far", file=sys.stderr, flush=True)
    return total


def _exhaust_case(case: str) -> Total:
    total = Total()
    with workshop() as shop:
        effects = chaos.run_actions(shop, case, chaos.REFERENCE).effects
        for number in range(1, effects + 1):
            report = chaos.run_actions(shop, case, chaos.REFERENCE, crash_at=number)
            total.add(Total(1, report.effects, report.interrupted, report.jobs))
            if report.wrong:
                total.bad.append((number, f"{case}, crash at effect", report.wrong))
    return total


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/chaos",
        description="Interrupt submit, resume, cancel and jobs in every way, on a scheduler in"
        " memory, and see that no result is lost or doubled and that status tells the truth.",
    )
    parser.add_argument("count", nargs="?", type=int, default=1000, help="sequences (1000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first one (0)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--replay", type=int, metavar="SEED", help="show every event of one")
    parser.add_argument("--exhaustive", action="store_true", help="every crash point, in order")
    options = parser.parse_args(arguments)
    if options.replay is not None:
        return replay(options.replay)
    begun = time.monotonic()
    if options.exhaustive:
        total = exhaust(options.processes)
    else:
        total = run_many(options.count, options.seed, options.processes)
    for seed, case, wrong in sorted(total.bad)[:_SHOWN]:
        print(f"{case} {seed}: {wrong[0]}")
    lost, doubled, status = (total.count(words) for words in (_LOST, _DOUBLED, _STATUS))
    other = len(total.bad) - total.count((*_LOST, *_DOUBLED, *_STATUS))
    print(
        f"{total.sequences} sequences, {total.effects} effects, {total.interrupted} of them"
        f" interrupted, {total.jobs} jobs started:"
        f" {lost} lost, {doubled} doubled, {status} wrong status, {other} wrong otherwise,"
        f" {time.monotonic() - begun:.0f} s"
    )
    if total.bad and not options.exhaustive:
        print(f"show one: scripts/chaos --replay {min(total.bad)[0]}")
    return 1 if total.bad else 0


if __name__ == "__main__":
    sys.exit(main())
