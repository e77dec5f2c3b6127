"""Do 95 % intervals hold 95 % of the time, and do tests at the 5 % level raise 5 % false alarms? By simulation.

    python benchmarks/coverage.py [--comparisons 1000] [--only WORD] [--processes 2]

Each case draws data sets from a known truth, makes an interval or a test of each with dlcv's own functions, and counts
how often the truth lies in the interval, and how often p < 0.05 where there is no difference. It prints one table for
each kind of figure: a row for each method and law, a column for each number of examples or runs. Beside each share
stands twice its standard error. An exclamation mark is outside the bar: 93 to 97 % held, 3 to 6 % false alarms.

Where dlcv warns of an interval (judge_sample, judge_runs), three more rows say how often it does not, how often the
interval holds then, and how often it misses without a warning.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from coverage_laws import (
    CLASS_SIZES,
    EXAMPLES,
    RUNS,
    compare_on_folds,
    draw_answers,
    draw_confidences,
    draw_crossed,
    draw_errors,
    draw_runs,
    draw_shared_errors,
    know_accuracy,
    resample_crossed,
)
from earlier_methods import (
    bootstrap,
    build_calibration,
    build_mean,
    build_r2,
    build_recall,
    compute_t_interval,
    flip_signs,
    run_t_test,
)
from numpy.random import Generator

from dlcv_cli.statistics import means, recalls, recipes, verdicts
from dlcv_cli.statistics.collapse import judge_classes
from dlcv_cli.statistics.significance import Interval, compute_paired_interval, compute_wilson_interval, run_mcnemar

if __name__ not in ("__main__", "__mp_main__"):
    # numba asks for the package of this name, and finds this file when another benchmark is run from the same folder
    raise ImportError("not the package coverage")

Outcomes = dict[str, bool]  # by what was looked at; "trusted": without a warning
BARS = {"interval": (93, 97), "alarms": (3, 6), "flags": (0, 3), "caught": (95, 100), "power": (77, 83)}
OLD = "*"  # ends the name of a method that dlcv does not use
DRAWS = 999


@dataclass(frozen=True)
class Case:
    """One cell of a table in each of its rows: what is drawn, and what is looked at."""

    table: str
    law: str
    column: str
    draw: Callable[[Generator], Outcomes]
    cost: float = 1.0  # the share of the comparisons that are made


def holds(interval: Interval, truth: float) -> bool:
    """Whether the truth lies in the interval."""
    return interval[0] <= truth <= interval[1]


def one_mean(law: str, n: int, rng: Generator) -> Outcomes:
    values, truth = draw_errors(rng, n, law)
    of = {"interval": holds(means.compute_mean_interval(values), truth), "trusted": not means.judge_sample(values)}
    of[f"interval, t {OLD}"] = holds(compute_t_interval(values), truth)
    if n <= 100:
        of[f"interval, BCa {OLD}"] = holds(bootstrap([build_mean(values)], DRAWS)[0], truth)
    return of


def mean_difference(law: str, n: int, rng: Generator) -> Outcomes:
    values, truth = draw_shared_errors(rng, n, law)
    _, interval, p = means.test_mean(values)
    of = {"interval": holds(interval, truth), "trusted": not means.judge_sample(values)}
    if truth == 0:
        of["alarms"] = p < 0.05
    if n <= 100:
        of[f"interval, BCa {OLD}"] = holds(bootstrap([build_mean(values)], DRAWS)[0], truth)
        if truth == 0:
            of[f"alarms, permutation {OLD}"] = flip_signs(values[None], DRAWS)[0] < 0.05
    return of


def explained(law: str, n: int, rng: Generator) -> Outcomes:
    targets = rng.random(n) + rng.random(n)
    answers = (targets + 0.1 * np.sqrt(draw_errors(rng, n, law)[0]) * rng.choice([-1, 1], n)).astype(np.float32)
    trusted = not means.judge_sample((answers - targets) ** 2)
    of = {"interval": holds(means.compute_r2_interval(answers, targets), 1 - 0.01 * 6), "trusted": trusted}
    if n <= 100:
        statistic = build_r2(answers, targets.astype(np.float32))
        of[f"interval, BCa {OLD}"] = holds(bootstrap([statistic], DRAWS)[0], 1 - 0.01 * 6)
    return of


def shares(law: str, n: int, rng: Generator) -> Outcomes:
    a = float(law)
    one, other = draw_answers(rng, np.full(n, a), np.full(n, a))
    only, lost = int((one & ~other).sum()), int((other & ~one).sum())
    return {
        "interval of one": holds(compute_wilson_interval(int(one.sum()), n), a),
        "interval of a difference": holds(compute_paired_interval(only, lost, n), 0),
        "alarms, mid-p": run_mcnemar(only, lost)[0] < 0.05,
    }


def calibration(law: str, n: int, rng: Generator) -> Outcomes:
    wrong = float(law.split()[0]) / 100
    scores = draw_confidences(rng, n, wrong)
    return {f"interval, BCa {OLD}": holds(bootstrap([build_calibration(scores)], DRAWS)[0], wrong)}


def recall(law: str, sizes: str, rng: Generator) -> Outcomes:
    counts = np.array(CLASS_SIZES[sizes])
    labels = np.repeat(np.arange(len(counts)), counts)
    if law == "0.98, rare 0.6":
        chances = np.where(counts == counts.max(), 0.98, 0.6)
    else:
        chances = rng.beta(*((6, 1.2) if law == "easy" else (2, 2)), len(counts))
    shift = np.clip(chances - 0.2 * rng.random(len(counts)), 0, 1)
    one, other = draw_answers(rng, chances[labels], chances[labels])
    _, worse = draw_answers(rng, chances[labels], shift[labels])
    _, interval, p = recalls.test_recall_difference(one * 1.0 - other, labels)
    apart = recalls.test_recall_difference(one * 1.0 - worse, labels)[1]
    of = {
        "interval of one": holds(recalls.compute_recall_interval(one, labels), chances.mean()),
        "interval, no difference": holds(interval, 0),
        "interval, a difference": holds(apart, float(chances.mean() - shift.mean())),
        "alarms": p < 0.05,
    }
    if len(labels) <= 100:
        of[f"interval of one, BCa {OLD}"] = holds(bootstrap([build_recall(one, labels)], DRAWS)[0], chances.mean())
    return of


def runs(law: str, k: int, rng: Generator) -> Outcomes:
    a, b = draw_runs(rng, k, law), draw_runs(rng, k, law)
    _, interval, p = run_t_test(a, b, paired=False)
    _, paired, paired_p = run_t_test(a, b, paired=True)
    return {
        "interval of one": holds(compute_t_interval(a), 0),
        "trusted": not recipes.judge_runs(a),
        "interval of a difference, Welch": holds(interval, 0),
        "interval of a difference, paired t": holds(paired, 0),
        "alarms, Welch": p < 0.05,
        "alarms, paired t": paired_p < 0.05,
        "alarms, ranks": verdicts.run_rank_test(a, b, False) < 0.05,
        "alarms, signed ranks": verdicts.run_rank_test(a, b, True) < 0.05,
    }


def crossed(law: str, k: int, n: int, rng: Generator) -> Outcomes:
    examples = rng.normal(0, 1, n)
    a, b = (draw_crossed(rng, (k, n), law, examples) for _ in range(2))
    tested, paired = recipes.test_crossed(a, b, False), recipes.test_crossed(a, b, True)
    against = recipes.test_crossed(a, np.zeros((1, n)), False)
    of = {
        "interval of one": holds(recipes.compute_crossed_interval(a), 0),
        "interval of a difference": holds(tested.interval, 0),
        "interval of a difference, paired": holds(paired.interval, 0),
        "interval against a baseline": holds(against.interval, 0),
        f"interval of a difference, only runs vary {OLD}": holds(run_t_test(a.mean(1), b.mean(1), False)[1], 0),
    }
    if n <= 500:
        of[f"interval of one, pigeonhole {OLD}"] = holds(resample_crossed(rng, [a], 299), 0)
        of[f"interval of a difference, pigeonhole {OLD}"] = holds(resample_crossed(rng, [a, -b], 299), 0)
    return of


def crossed_recall(law: str, k: int, sizes: str, rng: Generator) -> Outcomes:
    counts = np.array(CLASS_SIZES[sizes])
    labels = np.repeat(np.arange(len(counts)), counts)
    weights = recalls.weigh_by_class(labels)
    easy, hard = ((6, 1.2) if law == "easy" else (2, 2)), rng.random(len(labels))
    chances = rng.beta(*easy, len(counts))
    truth = float(chances.mean())
    sides = []
    for _ in range(2):  # a run moves each image's chance; half of the images are as hard for all runs
        own = np.where(rng.random((k, len(labels))) < 0.5, hard, rng.random((k, len(labels))))
        sides.append((own < chances[labels] + rng.normal(0, 0.01, (k, 1))) * 1.0)
    a, b = sides
    return {
        "interval of one, by class": holds(recipes.compute_crossed_interval(a, labels=labels), truth),
        "interval of one, weights alone": holds(recipes.compute_crossed_interval(a, weights), truth),
        "interval of a difference, by class": holds(recipes.test_crossed(a, b, False, labels=labels).interval, 0),
        "interval of a difference, weights alone": holds(recipes.test_crossed(a, b, False, weights).interval, 0),
    }


def folds(law: str, j: int, rng: Generator) -> Outcomes:
    a, b = compare_on_folds(rng, j, law == "random splits")
    share, truth = (0.25, know_accuracy(5)) if law == "random splits" else (1 / (j - 1), know_accuracy(j))
    tested = recipes.test_resampled(a - b, share)
    return {
        "interval of one": holds(recipes.compute_resampled_interval(a, share), truth),
        "interval of a difference": holds(tested.interval, 0),
        "alarms": tested.p < 0.05,
        f"interval of one, not corrected {OLD}": holds(compute_t_interval(a), truth),
        f"alarms, not corrected {OLD}": run_t_test(a, b, True)[2] < 0.05,
    }


def planning(law: str, k: int, rng: Generator) -> Outcomes:
    """What a pilot with a deviation of 1 says of power, equivalence and the number of runs that are needed."""
    known = recipes.build_tested(0.0, 1 / np.sqrt(k), k - 1.0, "")
    limit = verdicts.compute_power_limit(known)
    shown, same = (recipes.test_resampled(draw_runs(rng, k, law) + shift, 0) for shift in (limit, 0.8))
    needed = verdicts.count_needed(known, 0.8, k)
    larger = recipes.test_resampled(draw_runs(rng, needed, law) + 0.8, 0)
    return {
        "power at the limit": shown.p < 0.05,
        "power of the number needed for 0.8": larger.p < 0.05,
        "alarms, equivalent within 0.8, at 0.8": verdicts.test_equivalence(same, 0.8) < 0.05,
    }


def improvement(law: str, k: int, rng: Generator) -> Outcomes:
    """Normal runs `shift` deviations better than the others, of which a share fails, or whose deviation is triple."""
    from scipy.special import ndtr

    shift, kind = float(law.split()[0]), law.split()[1]
    a, b = rng.normal(shift, 1, k), rng.normal(0, 3 if kind == "wide" else 1, k)
    truth = float(ndtr(shift / (np.sqrt(10) if kind == "wide" else np.sqrt(2))))
    if kind == "failing":
        b -= 1000 * (rng.random(k) < 0.1)
        truth = 0.1 + 0.9 * truth
    return {"interval": holds(verdicts.compute_improvement(a, b)[1], truth)}


def collapse(law: str, column: str, rng: Generator) -> Outcomes:
    """Two classes; a network with recalls 0.98 and 0.6, or one that answers rarely and often whatever the image is."""
    n, rare = int(column.split()[0]), float(column.split()[1])
    labels = (rng.random(n) < rare).astype(np.int64)
    known = np.where(labels == 1, 0.6, 0.02)
    answers = (rng.random(n) < (known if law == "recalls 0.98, 0.6" else float(law.split()[-1]))).astype(np.int64)
    counts = [np.bincount(values, minlength=2) for values in (answers, answers[answers == labels])]
    fallen = judge_classes(counts[0], counts[1], labels, 0, ["often", "rare"]).collapsed
    return {"flags": fallen} if law.startswith("recalls") else {"caught": fallen}


# -------------------------------------------------------------------------------------------------------------- tables


def list_cases() -> Iterator[Case]:
    """Yield each cell."""
    tails = [f"kurtosis {k}" for k in ("3", "5.7", "10", "30")]
    pairs = [f"{kind} {k}" for kind in ("equal", "lighter", "better") for k in ("5.7", "10", "30")]
    for n in EXAMPLES:
        for table, laws, draw in (
            ("mean over examples", [*tails, "loss"], one_mean),
            ("paired difference of means", pairs, mean_difference),
            ("R2", tails, explained),
            ("shares", ["0.6", "0.9", "0.98"], shares),
        ):
            for law in laws:
                yield Case(table, law, f"n = {n}", partial(draw, law, n), 0.5 if table == "R2" else 1)
    for law in ("8 points", "2 points"):
        yield Case("calibration error", law, "n = 1736", partial(calibration, law, 1736), 0.5)
    for law, sizes in itertools.product(("easy", "hard", "0.98, rare 0.6"), CLASS_SIZES):
        yield Case("mean per-class recall", law, sizes, partial(recall, law, sizes), 0.5)
    for law, k in itertools.product(("normal", "lognormal 0.3", "lognormal 0.8", "failing"), RUNS):
        yield Case("runs", law, f"K = {k}", partial(runs, law, k))
        for n in EXAMPLES if law in ("normal", "failing") else (100,):
            cost = 1 if k * n <= 5_000 else 0.3
            yield Case(f"runs x examples, {law}", f"n = {n}", f"K = {k}", partial(crossed, law, k, n), cost)
    for law, sizes, k in itertools.product(("easy", "hard"), ("45, 5", "10 of 5", "Caltech101"), RUNS):
        yield Case(
            f"recall over runs x examples, {sizes}", law, f"K = {k}", partial(crossed_recall, law, k, sizes), 0.5
        )
    for law, j in itertools.product(("folds", "random splits"), (5, 10)):
        yield Case("folds", law, f"J = {j}", partial(folds, law, j))
    for k in RUNS:
        for law in ("normal", "lognormal 0.3"):
            yield Case("planning", law, f"K = {k}", partial(planning, law, k))
        for law in ("0 even", "1 even", "2 even", "1 wide", "1 failing", "0 failing"):
            yield Case("probability of improvement", law, f"K = {k}", partial(improvement, law, k))
    for n, rare in ((50, 0.1), (100, 0.1), (200, 0.05), (1000, 0.05), (1000, 0.5)):
        for law in ("recalls 0.98, 0.6", "independent 0.05", "independent 0.3", "independent 0"):
            yield Case("collapse", law, f"{n} {rare}", partial(collapse, law, f"{n} {rare}"))


def count(case: Case, number: int, comparisons: int) -> dict[str, tuple[float, int]]:
    """Return the share and the number of the comparisons, by what was looked at."""
    seen: dict[str, list[bool]] = defaultdict(list)
    for repeat in range(round(comparisons * case.cost)):
        outcomes = case.draw(np.random.default_rng((number, repeat)))
        trusted = outcomes.pop("trusted", None)
        for what, so in outcomes.items():
            seen[what].append(bool(so))
        if trusted is not None:
            first = next(iter(outcomes))
            seen["without a warning"].append(trusted)
            seen["misses without a warning"].append(trusted and not outcomes[first])
            if trusted:
                seen[f"{first}, without a warning"].append(outcomes[first])
    return {what: (float(np.mean(many)), len(many)) for what, many in seen.items()}


def show(share: float, number: int, what: str) -> str:
    """Return a share in percent with twice its standard error, and a mark if it is outside the bar."""
    low, high = next((bar for word, bar in BARS.items() if what.startswith(word)), (0, 100))
    error = 200 * np.sqrt(share * (1 - share) / number)
    mark = "" if OLD in what or low <= 100 * share <= high else " !"
    return f"{100 * share:.1f} +-{error:.1f}{mark}"


def main() -> None:
    """Runs the cases and prints the tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=1000)
    parser.add_argument("--only", default="", help="tables whose name has this in it")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    cases = [case for case in list_cases() if options.only in case.table]
    begun = time.perf_counter()
    with ProcessPoolExecutor(options.processes) as pool:
        results = list(pool.map(count, cases, range(len(cases)), [options.comparisons] * len(cases)))
    for table in dict.fromkeys(case.table for case in cases):
        cells = {(c.law, what, c.column): value for c, r in zip(cases, results, strict=True) if c.table == table
                 for what, value in r.items()}  # fmt: skip
        columns = list(dict.fromkeys(column for _, _, column in cells))
        print(f"\n{table}\n\n| | law | {' | '.join(columns)} |\n|---|---|{'---|' * len(columns)}")
        for what, law in sorted({(what, law) for law, what, _ in cells}):
            values = [show(*cells[law, what, c], what) if (law, what, c) in cells else "" for c in columns]
            print(f"| {what} | {law} | {' | '.join(values)} |", flush=True)
    print(f"\n{time.perf_counter() - begun:.0f} s; {OLD}: not what dlcv reports")


if __name__ == "__main__":
    main()
