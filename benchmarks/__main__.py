"""Measure speed, as ratios.  Each benchmark prints one line of JSON last."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import (
    ablation,
    agreement,
    contenders,
    decide,
    door,
    engines,
    fuzz,
    gradients,
    hop,
    load,
    overload,
    price,
    published,
    scaling,
    soak,
    steps,
)
from benchmarks.gpu import __main__ as gpu
from deploy.engines import ENGINES
from metastable import bundle, console, datasets
from metastable.bundle import shipped
from metastable.datasets import options
from metastable.engine.runners import Runner
from metastable.errors import DataError, MetastableError
from metastable.evaluation import cli
from metastable.evaluation.portion import portion
from metastable.stopping import Stopping


def run_decide(args: argparse.Namespace) -> dict[str, Any]:
    return _decide(args, _picture(args))


def _decide(args: argparse.Namespace, picture: Path | None) -> dict[str, Any]:
    loaded = bundle.load(args.bundle)
    test = portion(_images(args, loaded, "test"), args.n, skip=args.skip)
    if args.setting not in loaded.settings.names:
        raise MetastableError(f"--setting must be one of {', '.join(loaded.settings.names)}")
    digest = decide.weights_digest(loaded, args.setting)
    config = decide.DecideConfig(args.setting, len(test), args.skip, digest)
    recordings = decide.record(loaded, test, config, args.work)
    return decide.measure(
        loaded,
        contenders.make(loaded, (args.runner,), torch.empty(0, *loaded.shape))[args.runner],
        recordings,
        config,
        stopping=Stopping(delta=args.delta, least=args.least),
        caps=decide.sizes(args.caps),
        timed=args.timed,
        picture=picture,
    )


def run_load(args: argparse.Namespace) -> dict[str, Any]:
    return load.measure(
        args.bundle,
        args.images,
        args.work,
        rounds=args.rounds,
        seconds=args.seconds,
        utilisation=args.utilisation,
        share=args.share,
    )


def run_steps(args: argparse.Namespace) -> dict[str, Any]:
    loaded, runners = _contenders(args)
    found: dict[str, Any] = {"rows": []}
    if args.rounds:
        found = steps.measure(loaded, runners, args.rounds, _picture(args))
    if args.n:
        test = portion(_images(args, loaded, "test"), args.n, skip=args.skip)
        chains = {name: int(count) for name, _, count in (c.partition("=") for c in args.chains.split(","))}
        found["agreement"] = agreement.measure(loaded, runners, next(iter(runners)), chains, test)
    return found


def _contenders(args: argparse.Namespace) -> tuple[bundle.Bundle, dict[str, Runner]]:
    loaded = bundle.load(args.bundle)
    names = tuple(args.runners.split(","))
    calibration = torch.empty(0, *loaded.shape)
    if any(name.endswith("int8") for name in names):
        train = _images(args, loaded, "train").take(args.calibration)
        calibration = datasets.to_float(train.images)
    return loaded, contenders.make(loaded, names, calibration)


def _images(args: argparse.Namespace, loaded: bundle.Bundle, split: str) -> datasets.Images:
    """CIFAR-10's, or those of --images; DataError where the bundle is for others."""
    found = cli.images(args, split, loaded)
    if isinstance(found, datasets.ImageSet) and tuple(found.images.shape[1:]) != loaded.shape:
        raise DataError(
            f"the bundle {loaded.name} is for images of {loaded.shape}, {args.dataset} has "
            f"{tuple(found.images.shape[1:])}: name a folder of pictures with --images"
        )
    return found


def _picture(args: argparse.Namespace) -> Path | None:
    return args.out.with_suffix(".png") if args.out else None


def run_door(args: argparse.Namespace) -> dict[str, Any]:
    loaded = bundle.load(args.bundle)
    runner = contenders.make(loaded, (args.runner,), torch.empty(0, *loaded.shape))[args.runner]
    image = args.image.read_bytes()
    numbers = {"pairs": args.pairs, "rounds": args.rounds, "at_once": args.at_once}
    return door.measure(loaded, runner, image, args.setting, **numbers)


def run_fuzz(args: argparse.Namespace) -> dict[str, Any]:
    ports = (args.port, args.metrics_port)
    image = args.image.read_bytes()
    return fuzz.measure(args.bundle, image, args.work, count=args.n, seed=args.seed, ports=ports)


def run_hop(args: argparse.Namespace) -> dict[str, Any]:
    numbers = {"pairs": args.pairs, "rounds": args.rounds, "at_once": args.at_once}
    return hop.measure(args.bundle, args.image.read_bytes(), args.work, args.setting, **numbers)


def run_overload(args: argparse.Namespace) -> dict[str, Any]:
    config = overload.OverloadConfig(
        args.engine, args.setting, args.deadline_ms, args.clients, args.times, args.seconds
    )
    return overload.measure(args.bundle, args.image.read_bytes(), args.work, config, _picture(args))


def run_soak(args: argparse.Namespace) -> dict[str, Any]:
    images = [path.read_bytes() for path in sorted(args.images.glob("*.png"))]
    if len(images) < 2:
        raise MetastableError(
            f"{args.images} needs at least two PNG files: name another folder with --images"
        )
    config = soak.SoakConfig(args.engine, args.minutes, args.pause, args.clients, tuple(args.settings))
    return soak.measure(args.bundle, images, args.work, config, _picture(args))


def run_gradients(args: argparse.Namespace) -> dict[str, Any]:
    """On training images, which no table reports."""
    loaded = bundle.load(args.bundle)
    train = portion(_images(args, loaded, "train"), args.n)
    return {"rows": gradients.measure(loaded, train, args.setting, args.samples, args.rounds)}


def run_price(args: argparse.Namespace) -> dict[str, Any]:
    """Accuracy is that of the last training images, which `training harden` holds out."""
    loaded = bundle.load(args.bundle)
    if args.setting not in loaded.settings.names:
        raise MetastableError(f"--setting must be one of {', '.join(loaded.settings.names)}")
    whole = _images(args, loaded, "train")
    held = whole.take(args.n, skip=len(whole) - args.n)
    names = tuple(name for name in args.lower.split(",") if name)
    scales = datasets.to_float(whole.take(args.calibration).images)
    runners = contenders.make(loaded, (args.runner, *names), scales)
    lower = {name: runners[name] for name in names}
    rows = price.measure(loaded, runners[args.runner], args.setting, args.chains, held, args.rounds, lower)
    chains = {args.setting: args.chains} if names else {}
    return {"rows": rows, "agreement": agreement.measure(loaded, runners, args.runner, chains, held)}


def run_all(args: argparse.Namespace) -> dict[str, Any]:
    """Both, and the ratios that a script can hold to a target."""
    ratios: dict[str, float] = {}
    stepped = steps.measure(*_contenders(args), args.rounds, _picture(args))
    for row in stepped["rows"]:
        if row["work"] == "langevin":
            ratios[f"{row['runner']} beside eager autograd, {row['chains']} chains"] = row["ratio"]
    for row in _decide(args, picture=None)["rows"]:
        ratios[f"chains of 150 for one when decided early, cap {row['cap']}"] = row["fewer"]
    return {"ratios": ratios, "targets": stepped["targets"]}


def _add_data(one: argparse.ArgumentParser) -> None:
    one.add_argument("--data", type=Path, help="folder of the data sets (default: METASTABLE_DATA)")
    one.set_defaults(dataset="cifar10")
    options.add(one)


def add_decide(one: argparse.ArgumentParser, n: int, timed: int, work: str) -> None:
    _add_data(one)
    one.add_argument("--skip", type=int, default=2000, help="leave out the first images of the fixed order")
    one.add_argument("--work", type=Path, default=Path(work), help="keeps the recording")
    one.add_argument("--setting", default="balanced", help="whose chains are counted")
    one.add_argument("--n", type=int, default=n, help="test images, natural and attacked")
    one.add_argument("--delta", type=float, default=Stopping.delta, help="chance of another label")
    one.add_argument("--least", type=int, default=Stopping.least, help="chains before the first decision")
    one.add_argument("--caps", default="24,48,96,150", help="most chains a request may have")
    one.add_argument("--timed", type=int, default=timed, help="images of each kind that are timed")
    one.add_argument("--runner", default="openvino", help=f"of {', '.join(contenders.NAMES)}")


def add_steps(one: argparse.ArgumentParser, rounds: int) -> None:
    one.add_argument(
        "--runners", default=",".join(contenders.DEFAULT), help=f"of {', '.join(contenders.NAMES)}"
    )
    one.add_argument("--rounds", type=int, default=rounds, help="samples of each; 0 leaves the timing out")
    one.add_argument(
        "--calibration", type=int, default=64, help="training images that set the scales of int8"
    )


def fill(parser: argparse.ArgumentParser) -> None:
    """Make the parser that of the benchmarks."""
    parser.description = __doc__
    commands = parser.add_subparsers(dest="benchmark", metavar="BENCHMARK", required=True)

    def add(name: str, summary: str, measure: Callable[[argparse.Namespace], dict[str, Any]]) -> Any:
        # Arguments of its own: parsers that share a parent's would share its defaults.
        one = commands.add_parser(name, help=summary)
        one.add_argument(
            "--bundle",
            type=shipped.path,
            default=Path("model_store/cifar10"),
            help="folder of the bundle, or a shipped one's name",
        )
        console.add_out(one, "write the JSON line here as well, and a picture beside it")
        one.set_defaults(run=_run, measure=measure)
        return one

    one = add("decide", "chains and milliseconds of a decided answer beside a fixed H = 150", run_decide)
    add_decide(one, n=500, timed=10, work="runs/decide")

    one = add("load", "latency of cheap requests beside dear ones, through the real server", run_load)
    one.add_argument("--images", type=Path, default=Path("samples"), help="folder of what is asked")
    one.add_argument("--work", type=Path, default=Path("runs/load"), help="folders of the servers")
    one.add_argument("--rounds", type=int, default=3, help="turns of every phase")
    one.add_argument("--seconds", type=float, default=60.0, help="of a phase")
    one.add_argument("--utilisation", type=float, default=0.35, help="of the machine by the cheap stream")
    one.add_argument("--share", type=float, default=0.1, help="dear requests for every cheap one")

    one = add("door", "what HTTP adds to an answer, and takes of the answers a second", run_door)
    one.add_argument("--image", type=Path, default=Path("samples/cat.png"), help="what is asked")
    one.add_argument("--runner", default="torch", help="what runs the networks")
    one.add_argument("--setting", default="fast", help="of the answers")
    one.add_argument("--pairs", type=cli.from_one, default=100, help="answers each way, in turns")
    one.add_argument("--rounds", type=cli.from_one, default=7, help="of so many answers each way at once")
    one.add_argument("--at-once", type=cli.from_one, default=8, help="answers under way in a round")

    one = add("fuzz", "mutated requests against the door: answers, hangs, memory", run_fuzz)
    one.add_argument("--image", type=Path, default=Path("samples/cat.png"), help="what valid requests ask")
    one.add_argument("--n", type=cli.from_one, default=100_000, help="requests")
    one.add_argument("--seed", type=console.seed, default=0, help="of the mutations")
    one.add_argument("--work", type=Path, default=Path("runs/fuzz"), help="folder for those that went wrong")
    one.add_argument("--port", type=int, default=8090, help="of the server")
    one.add_argument("--metrics-port", type=int, default=8093, help="of the server")

    one = add("hop", "what the door adds to an answer of TorchServe", run_hop)
    one.add_argument("--image", type=Path, default=Path("samples/cat.png"), help="what is asked")
    one.add_argument("--setting", default="none", help="of the answers")
    one.add_argument("--pairs", type=cli.from_one, default=200, help="answers each way, in turns")
    one.add_argument("--rounds", type=cli.from_one, default=7, help="of so many answers each way at once")
    one.add_argument("--at-once", type=cli.from_one, default=8, help="answers under way in a round")
    one.add_argument("--work", type=Path, default=Path("runs/hop"), help="folder of the server")

    one = add("overload", "more requests than can be answered: goodput, memory, recovery", run_overload)
    one.add_argument("--image", type=Path, default=Path("samples/cat.png"), help="what is asked")
    one.add_argument("--engine", choices=ENGINES, default="local", help="what answers behind the door")
    one.add_argument("--setting", default="fast", help="of the answers")
    one.add_argument("--deadline-ms", type=int, default=0, help="of every request; 0 for none")
    one.add_argument("--clients", type=cli.from_one, default=16, help="at once, of the best goodput")
    one.add_argument("--times", type=float, default=3.0, help="of that rate, in the overload")
    one.add_argument("--seconds", type=float, default=60.0, help="of the overload")
    one.add_argument("--work", type=Path, default=Path("runs/overload"), help="folders of the servers")

    one = add("soak", "a server for hours, beside rude clients, with parts killed and frozen", run_soak)
    one.add_argument(
        "--images", type=Path, default=Path("samples"), help="folder of PNG files that are asked"
    )
    one.add_argument("--engine", choices=ENGINES, default="torchserve", help="what answers behind the door")
    one.add_argument("--settings", nargs="+", default=["fast"], help="that are asked for, besides none")
    one.add_argument("--minutes", type=float, default=60.0, help="of the campaign")
    one.add_argument("--pause", type=float, default=60.0, help="seconds between two things that happen")
    one.add_argument("--clients", type=cli.from_one, default=8, help="that ask honestly")
    one.add_argument("--work", type=Path, default=Path("runs/soak"), help="folders of the servers")

    one = add(
        "steps",
        "nanoseconds of a chain-step on every runner beside the published code; labels of low precision",
        run_steps,
    )
    _add_data(one)
    add_steps(one, rounds=15)
    one.add_argument("--n", type=int, default=500, help="test images whose labels are compared; 0 for none")
    one.add_argument("--skip", type=int, default=6000, help="leave out the first images of the fixed order")
    one.add_argument("--chains", default="energy=8,fast=24", help="settings and chains of that comparison")

    one = add("gradients", "direction and cost of gradients: exact, held and in bfloat16", run_gradients)
    _add_data(one)
    one.add_argument("--setting", default="fast", help="what is attacked")
    one.add_argument("--n", type=int, default=8, help="training images")
    one.add_argument("--samples", type=int, default=16, help="chains of a gradient")
    one.add_argument("--rounds", type=int, default=5, help="times that each is measured")

    one = add("price", "what one evaluation a step and one view a chain save, and their accuracy", run_price)
    _add_data(one)
    one.add_argument("--setting", default="fast", help="of the bundle, with dynamics adp")
    one.add_argument("--chains", type=int, default=8, help="of an answer; both for times and for accuracy")
    one.add_argument("--n", type=int, default=500, help="held-out training images whose labels are judged")
    one.add_argument("--rounds", type=int, default=15, help="samples of each time")
    one.add_argument("--runner", default="openvino", help=f"of {', '.join(contenders.NAMES)}")
    one.add_argument(
        "--lower", default="", help="others, of fewer bits, with commas between: their times and labels too"
    )
    one.add_argument(
        "--calibration", type=int, default=64, help="training images that set the scales of int8"
    )
    one.set_defaults(bundle=Path("model_store/cifar10-hardened"))

    ablation.fill(add("ablation", "what each part of `train harden` is worth", ablation.run))
    engines.fill(add("engines", "the engines behind the door, side by side", engines.run))
    published.fill(add("published", "Langevin answers beside the published loop", published.run))
    scaling.fill(add("scaling", "replicas for a rate and a latency: predicted, simulated", scaling.run))

    one = add(
        "all",
        "`steps` and `decide`, short: under a quarter of an hour on 2 cores; their ratios in one line",
        run_all,
    )
    add_decide(one, n=60, timed=3, work="runs/decide-short")
    add_steps(one, rounds=5)
    gpu.fill(commands.add_parser("gpu", help="the work of docs/gpu.md"))


def _run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, and print the rows."""
    result = {"command": args.benchmark, **args.measure(args), "machine": cli.machine()}
    for row in (*result.get("rows", []), *result.get("agreement", []), *result.get("targets", [])):
        print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    return result


def main() -> None:
    console.main(fill, "python -m benchmarks")


if __name__ == "__main__":
    main()
