"""Load a running server, and measure what it answers.  Each command prints one line of JSON last.

Exit status: 0 for a VALID run without failures, 1 if a --fail-if condition holds, 2 for wrong input,
3 for an INVALID run.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from pathlib import Path
from typing import Any

from loadtest import arms, compare, items, plots, records, report, sets
from loadtest import sweep as sweeping
from loadtest.agreement import accuracy_of, word
from loadtest.client import require_loopback
from loadtest.figures import to_json
from loadtest.make import Order, make
from loadtest.schedule import SCENARIOS, Load
from loadtest.summary import QUANTILES
from metastable import bundle, console
from metastable.attacks.catalogue import ATTACKS, Options
from metastable.bundle import shipped
from metastable.errors import MetastableError
from metastable.evaluation import cli
from metastable.evaluation.portion import portion

FAILED, INVALID = 1, 3
ARM = "a setting, or NAME:setting=fast,version=2.0,url=http://127.0.0.1:9000; one --arm for each"
CONDITION = "such as p99>500 or fast.robust<0.4, ms and shares: the status is then 1; one --fail-if for each"


def run_make(args: argparse.Namespace) -> dict[str, Any]:
    loaded = bundle.load(args.bundle)
    test = portion(cli.test_images(args, loaded), args.n, skip=args.skip)
    asked = {name: getattr(args, name) for name in ("norm", "eps", "step", "steps", "samples", "check")}
    order = Order(
        attack=args.attack,
        setting=args.setting,
        options=Options(**asked),
        skip=args.skip,
        batch=args.batch,
        seed=args.seed,
    )
    with cli.pool(args) as pool:
        made = make(loaded, test, order, args.out, pool)
    return {"command": "make"} | _told(args.out, made)


def run_check(args: argparse.Namespace) -> dict[str, Any]:
    return {"command": "check"} | _told(args.set, sets.load(args.set))


def _told(path: Path, one: sets.AttackSet) -> dict[str, Any]:
    about = one.about
    return {
        "file": str(path),
        "n": len(one),
        "attack": about.attack,
        "parameters": about.parameters,
        "eps": about.eps,
        "largest_distance": float(one.distances().max()),
        "maker_success": float(one.success.mean()),
        "digest": one.digest,
    }


def run_run(args: argparse.Namespace) -> dict[str, Any]:
    conditions = [compare.parse_condition(text) for text in args.fail_if]
    chosen, sources, drawn = _offered(args)
    drawing = bundle.load(args.bundle) if args.bundle.is_dir() else None
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    load = Load(**{name: getattr(args, name) for name in ("scenario", "rate", *_SHARED)})
    blocks = arms.run(chosen, drawn, load, rounds=args.rounds, warmup=args.warmup, seed=args.seed)
    whole = report.write(
        args.out,
        report.LoadRun(
            arms=chosen,
            sources=sources,
            items=drawn,
            load=load,
            rounds=args.rounds,
            warmup=args.warmup,
            seed=args.seed,
            objective_ms=args.objective,
            machine=cli.machine(),
            started=started,
            blocks=blocks,
            bundle=drawing,
        ),
    )
    failures = [failure for condition in conditions for failure in condition.failures(whole)]
    for line in (*whole.reasons, *failures):
        print(line, file=sys.stderr)
    args.adds = _agreement(whole.accuracy_is)
    kept = ("verdict", "reasons", "machine", "load")
    shown = ("arm", "n", "answered", "achieved_rate", "latency_ms", "goodput", "natural", "robust")
    return {
        "command": "run",
        **{name: to_json(getattr(whole, name)) for name in kept},
        "arms": [{name: to_json(getattr(arm, name)) for name in shown} for arm in whole.arms],
        "report": str(args.out / "report.html"),
        "failures": failures,
    }


def run_sweep(args: argparse.Namespace) -> dict[str, Any]:
    chosen, sources, drawn = _offered(args)
    load = Load(scenario=args.scenario, **{name: getattr(args, name) for name in _SHARED})
    goal = sweeping.LatencyBound(args.quantile, args.target, args.low, args.high, args.probes)
    what = accuracy_of([{"name": one.name, **one.about} for one in sources])
    args.adds = _agreement(what)
    found, taken = sweeping.sweep(chosen, sources, drawn, load, goal, warmup=args.warmup, seed=args.seed)
    result = {
        "command": "sweep",
        **to_json(found),
        "machine": cli.machine(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "sweep.json").write_text(json.dumps(result) + "\n")
    records.write(args.out / "requests.jsonl", taken)
    xlabel = f"highest rate with {args.quantile} within {args.target:g} ms, requests/s"
    frontier = plots.frontier(sweeping.points(found.rows), xlabel, word(what))
    (args.out / "frontier.png").write_bytes(plots.png(frontier))
    return result


def run_compare(args: argparse.Namespace) -> dict[str, Any]:
    conditions = [compare.parse_condition(text) for text in args.fail_if]
    first, second = compare.load(args.first), compare.load(args.second)
    found = compare.reports(first, second)
    for line in compare.sentences(found.arms):
        print(line)
    args.adds = _agreement(second.accuracy_is)
    failures = [failure for condition in conditions for failure in condition.failures(second)]
    for line in failures:
        print(line, file=sys.stderr)
    return {"command": "compare", **to_json(found), "verdict": second.verdict, "failures": failures}


def _agreement(what: str | None) -> dict[str, str]:
    """Said on stderr, and in the line of JSON, where nobody labelled the images."""
    if what is None:
        return {}
    print(f"what is called accuracy is {what}", file=sys.stderr)
    return {"accuracy_is": what}


_SHARED = ("concurrency", "seconds", "timeout")


def _offered(
    args: argparse.Namespace,
) -> tuple[list[arms.Arm], list[items.Source], list[items.Item]]:
    """Arms and images of a command; MetastableError for another machine without leave."""
    chosen = [arms.parse_arm(text, args.url) for text in args.arm]
    if len({arm.name for arm in chosen}) < len(chosen):
        raise MetastableError("two arms have the same name: write NAME:setting=...")
    for arm in chosen:
        url = arm.target.url
        if not args.allow_remote:
            require_loopback(url)
    mix = items.parse_mix(args.images, args.sets)
    sources = [items.read(part.path) for part in mix]
    if len({source.name for source in sources}) < len(sources):
        raise MetastableError("two sets of the mix have the same name: rename a file")
    return chosen, sources, items.draw(sources, [part.share for part in mix], args.n, args.seed)


def _add_make(commands: Any) -> None:
    one = commands.add_parser("make", help="an attack set against a bundle, or clean images")
    one.add_argument(
        "--bundle", type=shipped.path, default=Path("model_store/cifar10"), help="what is attacked"
    )
    cli.add_data(one)
    one.add_argument("--out", type=Path, required=True, help="the .npz file to write")
    one.add_argument("--attack", default=sets.CLEAN, choices=(sets.CLEAN, *ATTACKS), help="clean for none")
    one.add_argument("--setting", default="balanced", help="of the bundle")
    one.add_argument("--n", type=int, default=100, help="test images")
    cli.attack_arguments(one)
    cli.add_ray(one)
    of_attack = ("--norm", "--eps", "--step", "--steps", "--samples", "--check", "--setting", "--ray")
    console.idle(one, *of_attack, without="--attack", why="as the images stay clean")
    one.set_defaults(run=run_make)


def _load_arguments() -> argparse.ArgumentParser:
    """What `run` and `sweep` share."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--url", default="http://127.0.0.1:8080", help="of the server")
    shared.add_argument("--arm", action="append", required=True, help=ARM)
    shared.add_argument("--images", required=True, help="clean:0.9,pgd:0.1, or paths of sets or folders")
    shared.add_argument("--sets", type=Path, default=Path("runs/sets"), help="folder of the sets")
    shared.add_argument("--n", type=int, help="images; default: all")
    shared.add_argument("--concurrency", type=int, default=Load.concurrency, help="of a closed loop")
    shared.add_argument("--seconds", type=float, default=Load.seconds, help="most time of a block")
    shared.add_argument("--timeout", type=float, default=Load.timeout, help="seconds of a request")
    shared.add_argument("--warmup", type=int, default=5, help="requests before each block's measured ones")
    shared.add_argument("--seed", type=console.seed, default=0, help="of order and times")
    shared.add_argument("--allow-remote", action="store_true", help="other hosts than this machine")
    shared.add_argument("--out", type=Path, required=True, help="folder of the report")
    return shared


def _add_run(commands: Any, shared: argparse.ArgumentParser) -> None:
    one = commands.add_parser(
        "run", parents=[shared], help="arms under load: latency, accuracy, detection, in a report"
    )
    one.add_argument("--scenario", default=Load.scenario, choices=SCENARIOS, help="how requests come")
    one.add_argument("--rate", type=float, default=Load.rate, help="requests a second of an open loop")
    one.add_argument("--rounds", type=int, default=3, help="turns of every arm")
    one.add_argument("--objective", type=float, default=1000.0, help="ms that a good answer may take")
    one.add_argument(
        "--bundle", type=shipped.path, default=Path("model_store/cifar10"), help="for the gallery"
    )
    one.add_argument("--fail-if", action="append", default=[], help=CONDITION)
    one.set_defaults(run=run_run, status=_status)


def _add_sweep(commands: Any, shared: argparse.ArgumentParser) -> None:
    one = commands.add_parser(
        "sweep", parents=[shared], help="the highest rate of every arm that meets a latency target"
    )
    one.add_argument(
        "--scenario", default="poisson", choices=("poisson", "constant"), help="how requests come"
    )
    one.add_argument("--quantile", default="p95", choices=tuple(QUANTILES), help="of the latency")
    one.add_argument("--target", type=float, default=1000.0, help="most ms of that")
    one.add_argument("--low", type=float, default=1.0, help="first rate, requests/s")
    one.add_argument("--high", type=float, default=64.0, help="highest rate")
    one.add_argument("--probes", type=int, default=8, help="most rates tried of an arm")
    one.set_defaults(run=run_sweep)


def fill(parser: argparse.ArgumentParser) -> None:
    """Make the parser that of the load tests."""
    parser.description = __doc__
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_make(commands)
    one = commands.add_parser("check", help="whether a set is whole and its images are in their balls")
    one.add_argument("set", type=Path, help="the .npz file")
    one.set_defaults(run=run_check)
    shared = _load_arguments()
    _add_run(commands, shared)
    _add_sweep(commands, shared)
    one = commands.add_parser(
        "compare", help="what changed from one report to another, and whether it may be noise"
    )
    one.add_argument("first", type=Path, help="report.json of the one")
    one.add_argument("second", type=Path, help="report.json of the other")
    one.add_argument("--fail-if", action="append", default=[], help=CONDITION)
    one.set_defaults(run=run_compare, status=_status)


def _status(result: dict[str, Any]) -> int:
    if result["failures"]:
        return FAILED
    return INVALID if result["verdict"] == "INVALID" else 0


def main() -> None:
    console.main(fill, "python -m loadtest")


if __name__ == "__main__":
    main()
