"""Command line: ``nnunet-imbal COMMAND``. Each command only parses words and calls one function elsewhere."""

import os
from pathlib import Path
from typing import Annotated

import typer

from nnunet_imbal._version import __version__
from nnunet_imbal.errors import ImbalError

__all__ = ["app", "main"]

_PREPROCESSED = "nnUNet_preprocessed"

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find the rare structures: class-imbalance tools for nnU-Net v2 and MONAI.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"nnunet-imbal {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True)] = False,
) -> None:
    """Class-imbalance tools for nnU-Net v2 and MONAI."""


@app.command()
def configure(
    dataset: Annotated[str, typer.Argument(help="Number, name or folder of a planned dataset (nnUNet_preprocessed).")],
    name: Annotated[str, typer.Option("--name", help="Name of the new configuration, e.g. 3d_fullres_cc.")],
    loss: Annotated[
        list[str] | None, typer.Option("--loss", help="Registered name[=weight], e.g. cc_dice=0.5; repeatable.")
    ] = None,
    sampling: Annotated[
        bool, typer.Option("--sampling", help="Force patches to classes and instances alike, large or small.")
    ] = False,
    recipe: Annotated[
        bool, typer.Option("--recipe", help="Start from what ImbalTrainer would choose for the dataset.")
    ] = False,
    without: Annotated[
        list[str] | None, typer.Option("--without", help="Part of the recipe to leave out, e.g. cc_dice; repeatable.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Length of the training, by which a recipe starts terms.")] = 1000,
    source: Annotated[str, typer.Option("--from", help="Configuration to start from.")] = "3d_fullres",
    plans: Annotated[str, typer.Option("--plans", "-p", help="Plans identifier.")] = "nnUNetPlans",
) -> None:
    """Add a configuration with other losses or patches to a dataset's plans, for `nnUNetv2_train -tr ImbalTrainer`."""
    from nnunet_imbal.check import find_dataset
    from nnunet_imbal.config import ImbalConfig, Sampling
    from nnunet_imbal.configure import add_configuration, edit, parse_term, patch_size
    from nnunet_imbal.fingerprint import find_fingerprint
    from nnunet_imbal.recipe import choose_recipe, print_recipe

    if not (loss or sampling or recipe):
        raise typer.BadParameter("name at least one --loss, or --sampling, or --recipe")
    if without and not recipe:
        raise typer.BadParameter("--without leaves out parts of --recipe")
    folder, config = find_dataset(dataset, "nnUNet_preprocessed"), ImbalConfig()
    file, terms = folder / f"{plans}.json", [parse_term(words) for words in loss or ()]
    if recipe:
        chosen = choose_recipe(find_fingerprint(folder), epochs=epochs, patch_size=patch_size(file, source))
        print_recipe(chosen)
        config = chosen.config
    config = edit(config, terms=terms, sampling=Sampling() if sampling else None, without=without or ())
    typer.echo(add_configuration(file, source=source, name=name, config=config))


@app.command()
def evaluate(
    prediction: Annotated[Path, typer.Argument(help="Folder with predicted label maps.")],
    reference: Annotated[Path, typer.Argument(help="Folder with the expert's label maps, same file names.")],
    json: Annotated[Path, typer.Option("--json", help="Where to write the result.")],
    dataset_json: Annotated[
        Path | None, typer.Option(help="dataset.json naming the classes; found beside the folders if omitted.")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", "-n", min=1, help="Cases measured at the same time.")] = 2,
    tolerance: Annotated[float, typer.Option(min=0, help="Tolerance of the surface Dice in mm.")] = 1.0,
    connectivity: Annotated[int, typer.Option(help="6, 18 or 26 neighbours make one lesion.")] = 26,
    matcher: Annotated[str, typer.Option(help="greedy, hungarian or merge: who belongs to which lesion.")] = "greedy",
    match_metric: Annotated[str, typer.Option(help="iou or dsc: what decides about a match.")] = "iou",
    match_threshold: Annotated[float, typer.Option(min=0, max=1, help="Lowest score of a match.")] = 0.5,
    lesion_rule: Annotated[
        str | None,
        typer.Option(help="Also score lesions as a challenge does: brats2023-{gli,ssa,ped,men,met}, brats-mets2026."),
    ] = None,
    topology: Annotated[
        bool, typer.Option("--topology", help="Also ask whether vessels are whole: clDice, Betti errors, contacts.")
    ] = False,
    topcow: Annotated[
        bool, typer.Option("--topcow", help="Also score the circle of Willis as the TopCoW challenge does.")
    ] = False,
) -> None:
    """Measure predictions: per class, per case and per lesion."""
    from nnunet_imbal.evaluation import EvaluationSettings, evaluate_folders, print_summary

    settings = EvaluationSettings(
        tolerance_mm=tolerance,
        connectivity=connectivity,
        matcher=matcher,  # type: ignore[arg-type]  # checked there, with a message for people
        matching_metric=match_metric,  # type: ignore[arg-type]
        matching_threshold=match_threshold,
        lesion_rule=lesion_rule,
        topology=topology,
        topcow=topcow,
    )
    result = evaluate_folders(
        prediction, reference, json, dataset_json=dataset_json, settings=settings, workers=workers
    )
    print_summary(result)


@app.command()
def report(
    evaluation: Annotated[Path, typer.Argument(help="JSON file written by `nnunet-imbal evaluate`.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="HTML file to write.")] = Path("report.html"),
    images: Annotated[Path | None, typer.Option(help="Folder with the images (imagesTr or imagesTs).")] = None,
    title: Annotated[str | None, typer.Option(help="Heading of the report.")] = None,
) -> None:
    """Write one self-contained HTML page that shows what was found and what was missed."""
    from nnunet_imbal.report import write_report

    typer.echo(write_report(evaluation, out, images=images, title=title))


@app.command()
def dataset(
    name: Annotated[str, typer.Argument(help="phantom-lesions, phantom-organs, phantom-vessels or spine.")],
    out: Annotated[Path, typer.Argument(help="nnUNet_raw folder; DatasetXXX_Name is made inside it.")],
    dataset_id: Annotated[int, typer.Option("--id", min=1, max=999, help="nnU-Net dataset number.")] = 900,
    cases: Annotated[int, typer.Option(min=1, help="Training cases.")] = 16,
    test_cases: Annotated[int, typer.Option(min=0, help="Test cases.")] = 4,
    seed: Annotated[int, typer.Option(help="Same seed, same voxels.")] = 0,
) -> None:
    """Write a complete nnU-Net raw dataset to try things on."""
    from nnunet_imbal.phantoms import write_dataset

    typer.echo(write_dataset(name, out, dataset_id=dataset_id, cases=cases, test_cases=test_cases, seed=seed))


@app.command()
def check(
    dataset: Annotated[str, typer.Argument(help="Raw dataset: its folder, or its number or name in $nnUNet_raw.")],
    workers: Annotated[int, typer.Option("--workers", "-n", min=1, help="Cases read at the same time.")] = 2,
) -> None:
    """Look for faults in a raw dataset before hours of training. Files are only read, nothing is changed."""
    from nnunet_imbal.check import find_dataset, inspect_dataset, print_problems

    folder = find_dataset(dataset)
    found = inspect_dataset(folder, workers=workers)
    raise typer.Exit(print_problems(folder, found.problems, unlabelled=len(found.unlabelled)))


@app.command()
def fingerprint(
    dataset: Annotated[str, typer.Argument(help="Raw dataset: its folder, or its number or name in $nnUNet_raw.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="JSON file; default: beside nnU-Net's own fingerprint, if there.")
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Also write a page with figures and examples.")] = None,
    workers: Annotated[int, typer.Option("--workers", "-n", min=1, help="Cases measured at the same time.")] = 4,
) -> None:
    """Tell what is imbalanced in a dataset: rare classes, small pieces, thin vessels, mirror images."""
    from nnunet_imbal.check import find_dataset
    from nnunet_imbal.fingerprint import default_path, fingerprint_dataset, print_fingerprint
    from nnunet_imbal.recipe import choose_recipe, print_recipe
    from nnunet_imbal.report import write_fingerprint_page

    folder = find_dataset(dataset)
    path = out or default_path(folder)
    found = fingerprint_dataset(folder, out=path, workers=workers)
    print_fingerprint(found)
    print_recipe(choose_recipe(found))
    if html:
        typer.echo(f"Page: {write_fingerprint_page(found, folder, html)}")
    typer.echo(f"Written to {path}" if path else "Not kept: plan the dataset first, or name a file with --out.")


@app.command("add-unlabelled")
def add_unlabelled(
    dataset: Annotated[str, typer.Argument(help="Raw dataset: its folder, or its number or name in $nnUNet_raw.")],
    images: Annotated[
        list[Path] | None, typer.Argument(help="Images, or folders of them: CASE_0000.nii.gz, one file per channel.")
    ] = None,
    prefix: Annotated[str, typer.Option(help="Goes before each case name, should names be taken.")] = "",
    link: Annotated[bool, typer.Option("--link", help="Make symbolic links instead of copies.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Take out again what was added.")] = False,
) -> None:
    """Add training cases that nobody annotated, for trainers that learn from them."""
    from nnunet_imbal.check import find_dataset
    from nnunet_imbal.unlabelled import add_unlabelled as add
    from nnunet_imbal.unlabelled import remove_unlabelled

    if remove == bool(images):
        raise typer.BadParameter("name the images to add, or say --remove")
    folder = find_dataset(dataset)
    if remove:
        root = os.environ.get(_PREPROCESSED)
        done = remove_unlabelled(folder, preprocessed=Path(root) / folder.resolve().name if root else None)
        typer.echo(f"Removed {len(done.removed)} unlabelled cases from {folder}. Preprocess it again.")
        if done.kept:
            typer.echo(f"Kept, because somebody annotated them: {', '.join(done.kept)}.")
        return
    cases = add(folder, images or [], prefix=prefix, link=link)
    typer.echo(f"Added {len(cases)} unlabelled cases to {folder}: {', '.join(cases)}.")
    typer.echo(f"Now run `nnunet-imbal extract-fingerprint {dataset}`, then plan and preprocess.")


@app.command("extract-fingerprint")
def extract_fingerprint(
    dataset: Annotated[str, typer.Argument(help="Raw dataset: its folder, or its number or name in $nnUNet_raw.")],
    processes: Annotated[int, typer.Option("--processes", "-np", min=1, help="Cases read at the same time.")] = 2,
) -> None:
    """Run nnU-Net's fingerprint extraction without the voxels that nobody labelled; planning goes on from it."""
    from nnunet_imbal.check import find_dataset
    from nnunet_imbal.errors import ConfigError
    from nnunet_imbal.unlabelled import extract_fingerprint as extract

    root = os.environ.get(_PREPROCESSED)
    if not root:
        raise ConfigError("nnUNet_preprocessed is not set: export nnUNet_preprocessed=<folder>, as for nnU-Net")
    typer.echo(extract(find_dataset(dataset), root, processes=processes))


@app.command()
def demo(
    data: Annotated[str, typer.Option(help="phantom-lesions or spine.")] = "phantom-lesions",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for everything the demo makes.")] = Path(
        "demo-output"
    ),
    trainer: Annotated[str, typer.Option("--trainer", "-tr", help="nnU-Net trainer class.")] = "ImbalTrainer_demo",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Run the whole chain, from a dataset to a report, with nnU-Net's own commands."""
    from nnunet_imbal.demo import run_demo

    run_demo(data, out, trainer=trainer, device=device)


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="Results folder, e.g. ImbalTrainer__nnUNetPlans__3d_fullres.")],
    out: Annotated[Path, typer.Argument(help="New folder for the plugin-free copy.")],
    trust: Annotated[
        bool, typer.Option("--trust", help="Unpickle a checkpoint that is not weights-only safe.")
    ] = False,
) -> None:
    """Copy a trained model so that stock nnU-Net predicts with it, without this plugin."""
    from nnunet_imbal.export import export_model

    typer.echo(export_model(model, out, trust=trust))


@app.command("operating-point", context_settings={"allow_extra_args": True})
def operating_point(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(help="Results folder, e.g. ImbalTrainer__nnUNetPlans__3d_fullres.")],
    folds: Annotated[
        list[int] | None, typer.Option("--folds", "-f", help="Folds to choose on, e.g. 0 1 2; default: all validated.")
    ] = None,
    at_most_false_positives: Annotated[
        float | None, typer.Option(min=0, help="Highest recall at this price per case, instead of highest F1.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Expert's label maps; default: those nnU-Net preprocessed.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file; default: in the results folder.")] = None,
    workers: Annotated[int, typer.Option("--workers", "-n", min=1, help="Cases measured at the same time.")] = 2,
) -> None:
    """Choose threshold and smallest volume per class on the validation cases, for `nnunet-imbal predict`."""
    from nnunet_imbal.operating_point import (
        FILE_NAME,
        Criterion,
        check_target,
        choose_operating_point,
        print_operating_point,
    )

    more = context.args  # `--folds 0 1 2`: the option takes the 0
    if more and not (folds and all(word.isdigit() for word in more)):
        raise typer.BadParameter(f"unexpected {' '.join(more)}; say: operating-point MODEL_FOLDER --folds 0 1")
    chosen, target = [*folds, *map(int, more)] if folds else None, out or model / FILE_NAME
    check_target(target)
    criterion = Criterion(at_most_false_positives)
    point = choose_operating_point(model, folds=chosen, references=labels, criterion=criterion, workers=workers)
    print_operating_point(point)
    point.save(target)
    typer.echo(f"Written to {target}")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def predict(context: typer.Context) -> None:
    """Predict as nnUNetv2_predict does, with its options, at the model's operating point if it has one."""
    from importlib import import_module

    from nnunet_imbal.discovery import announce_trainers

    announce_trainers()
    import_module("trainers._prediction").main(context.args)  # late: nothing else here needs nnU-Net


@app.command("trainers-path")
def trainers_path() -> None:
    """Print the folder for nnUNet_extTrainer."""
    from nnunet_imbal.discovery import discovery_folder

    typer.echo(discovery_folder())


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def run(context: typer.Context) -> None:
    """Run a command, for example nnUNetv2_train, with our trainers in nnUNet_extTrainer."""
    from nnunet_imbal.discovery import run_with_trainers

    raise typer.Exit(run_with_trainers(context.args))


@app.command()
def doctor() -> None:
    """Look for what could go wrong on this machine, and say how to cure it."""
    from nnunet_imbal.doctor import examine, print_findings

    raise typer.Exit(print_findings(examine()))


def main() -> None:
    """Run the command line; errors of ours end with one clear line and exit status 2."""
    try:
        app()
    except ImbalError as error:
        typer.secho(f"{type(error).__name__}: {error}", fg=typer.colors.RED, err=True)
        raise SystemExit(2) from None
