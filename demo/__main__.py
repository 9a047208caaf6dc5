"""Attack the shipped sample images on the spot and ask the running server about them.

    metastable demo                      # needs `make serve` in another terminal
    metastable demo --images cat,ship --setting fast
    metastable demo --bundle mine/bundle --images photos/one.jpg,photos/two.jpg   # of a bundle of your own

The attack is PGD on the bare classifier, 8/255, which does not know the defense.  The verdicts
come from the server; the picture's purified images and logits are computed here with the same
bundle and setting, because a server does not hand them out.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from demo import picture
from metastable import bundle, console, noise
from metastable.anomaly import score_norms
from metastable.attacks.pgd import pgd
from metastable.attacks.white_box import attackable
from metastable.batches import batch_of
from metastable.bundle import shipped
from metastable.client import Answer, Client
from metastable.datasets import CIFAR10_CLASSES
from metastable.defense import defend
from metastable.errors import MetastableError

SAMPLES = Path(__file__).resolve().parent.parent / "samples"


def line(truth: str, kind: str, said: Answer) -> str:
    flag = "flagged" if said.flagged else "-"
    return (
        f"{truth:<11}{kind:<9}{said.unpurified.class_name:<12}{said.class_name:<12}"
        f"{said.anomaly.score:>7.3f}  {flag:<8}{said.chains:>6}{said.timings_ms['total']:>9.0f}"
    )


def file_of(name: str, loaded: bundle.Bundle) -> bytes:
    """The sample of a class of the bundle, or a picture at a path; MetastableError if it is neither."""
    if name in CIFAR10_CLASSES and name in loaded.classes:
        return (SAMPLES / f"{name}.png").read_bytes()
    try:
        return Path(name).read_bytes()
    except OSError:
        known = ", ".join(one for one in CIFAR10_CLASSES if one in loaded.classes) or "none for this bundle"
        raise MetastableError(
            f"there is no sample and no picture {name!r}: give the path of a picture, or a sample ({known})"
        ) from None


@torch.inference_mode()
def labels_of(names: list[str], clean: Tensor, loaded: bundle.Bundle) -> Tensor:
    """The class that a sample is named by; of a picture at a path, what the bare classifier says of it."""
    said = loaded.classifier(clean).argmax(1).tolist()
    return torch.tensor(
        [
            loaded.classes.index(name) if name in CIFAR10_CLASSES and name in loaded.classes else label
            for name, label in zip(names, said, strict=True)
        ]
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    loaded = bundle.load(args.bundle)
    files = {name: file_of(name, loaded) for name in args.images.split(",")}
    calibration = loaded.calibration
    if args.setting not in loaded.settings.names:
        raise MetastableError(f"--setting must be one of {', '.join(loaded.settings.names)}")
    clean = batch_of(list(files.values()), loaded.shape, loaded.fit)
    labels = labels_of(list(files), clean, loaded)
    names = [loaded.classes[label] for label in labels.tolist()]
    print(f"attacking {len(names)} images: PGD on the bare classifier, 8/255, {args.steps} steps")
    attacked = pgd(attackable(loaded, clean).classifier, clean, labels, steps=args.steps)
    print(
        f"\n{'truth':<11}{'image':<9}{'bare says':<12}{'purified':<12}{'score':>7}  {'anomaly':<8}"
        f"{'chains':>6}{'ms':>9}"
    )
    counts = {"clean_right": 0, "attacked_right": 0, "bare_attacked_right": 0, "attacked_flagged": 0}
    with Client(args.url) as client:
        client.live()  # or it says at once that nobody answers
        for i, name in enumerate(names):
            first = client.classify(clean[i].numpy(), setting=args.setting)
            second = client.classify(attacked[i].numpy(), setting=args.setting)
            print(line(name, "clean", first), line(name, "attacked", second), sep="\n")
            counts["clean_right"] += first.class_name == name
            counts["attacked_right"] += second.class_name == name
            counts["bare_attacked_right"] += second.unpurified.class_name == name
            counts["attacked_flagged"] += second.flagged
    norms = score_norms(attacked, loaded.scores[calibration.network])
    result = defend(
        attacked[: args.rows],
        [noise.secret_seed() for _ in names[: args.rows]],
        loaded.settings[args.setting],
        classifier=loaded.classifier,
        scores=loaded.scores,
        flagged=calibration.flags(norms)[: args.rows],
    )
    picture.draw(clean, attacked, result, names, loaded.classes, args.picture)
    print(f"\npicture: {args.picture}")
    return {"command": "demo", "images": len(names), "setting": args.setting, **counts}


def fill(parser: argparse.ArgumentParser) -> None:
    """Make the parser that of the demonstration."""
    parser.description = __doc__
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="where the server predicts")
    parser.add_argument(
        "--bundle", type=shipped.path, default=Path("model_store/cifar10"), help="what is attacked"
    )
    parser.add_argument(
        "--images", default=",".join(CIFAR10_CLASSES), help="names of samples, or paths of pictures"
    )
    parser.add_argument("--setting", default="balanced", help="of the server")
    parser.add_argument("--steps", type=int, default=20, help="of PGD")
    parser.add_argument("--rows", type=int, default=4, help="images in the picture")
    parser.add_argument("--picture", type=Path, default=Path("demo.png"), help="file to write")
    console.add_out(parser)
    parser.set_defaults(run=run)


def main() -> None:
    console.main(fill, "python -m demo")


if __name__ == "__main__":
    main()
