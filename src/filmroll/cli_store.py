"""`filmroll store`: looking after the images that runs share; thin, one function per command."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from filmroll.errors import ConfigError
from filmroll.view.plain import say

if TYPE_CHECKING:
    from filmroll.store import Manifest, Store
    from filmroll.store.upkeep.tally import Tally

store_app = typer.Typer(
    name="store",
    help="Look after the images that runs keep: what is needed, what is whole, what can go. All of it is safe while "
    "runs write to the same store.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

HOUR = 3600.0

Places = Annotated[
    list[str],
    typer.Argument(metavar="RUN", help="A run's folder, which stands for its store; or a store's folder or URL."),
]
Place = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder; or a store's folder or URL.")]
Named = Annotated[
    str, typer.Option("--manifest", help="Which manifest, where a store is named; `filmroll store stats` lists them.")
]


@store_app.command(
    help="Remove images that nothing refers to.\n\n"
    "What a run refers to stands in the store itself. So every run that writes to a store is respected, whether it is "
    "named here or not; `filmroll store forget RUN` lets go of one.\n\n"
    "Nothing goes that was put, or put again, within the last 24 hours. What goes lies in trash for another 24 hours, "
    "where it is still found: run this once a day."
)
def gc(
    places: Places,
    delete: Annotated[bool, typer.Option("--delete", help="Do it; without this, only say what would be done.")] = False,
    idle_grace: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="HOURS",
            help="Only while nobody writes to the store: take images for old after so many hours instead of 24.",
        ),
    ] = None,
) -> None:
    from filmroll.store.upkeep.gc import gc as collect
    from filmroll.view.words import size

    grace = None if idle_grace is None else idle_grace * HOUR
    for store in _stores(places):
        done = collect(store, delete=delete, grace=grace)
        hours = (store.grace if grace is None else grace) / HOUR
        would = "" if delete else "would be "
        rows: list[tuple[Tally, str]] = [
            (done.trashed, f"{would}moved into trash: nothing refers to them"),
            (done.removed, f"{would}removed for good: in trash for {hours:g} hours"),
            (done.restored, f"{would}put back from trash: something refers to them"),
            (done.waiting, f"wait in trash, for {hours:g} hours at least"),
            (done.manifest, "stay: manifests name them"),
            (done.lease, "stay: leases hold them"),
            (done.fresh, f"stay: put within the last {hours:g} hours"),
        ]
        say(store.shelf.uri(""))
        for tally, what in rows:
            if tally.count or tally is done.trashed:
                say(f"  {tally.count:>11,} images {size(tally.nbytes):>10}  {what}")
        if done.foreign:
            say(f"  {done.foreign:>11,} objects are nothing of a store's, and never touched")
        if not delete and done.trashed.count + done.removed.count + done.restored.count:
            say("  nothing was done: --delete does it")


@store_app.command()
def sweep(
    places: Places,
    older_than: Annotated[float, typer.Option(min=0, metavar="HOURS", help="What is younger stays.")] = 24.0,
) -> None:
    """Remove temporary files, processed features and ended leases; never images, not even damaged ones."""
    from filmroll.store.upkeep.sweep import sweep as swept

    for store in _stores(places):
        done = swept(store, time_to_live=older_than * HOUR)
        say(store.shelf.uri(""))
        say(f"  removed {done.temporary:,} temporary files, {done.features:,} features, {done.leases:,} ended leases")


@store_app.command()
def verify(places: Places) -> None:
    """Read and hash every image again. Exits with 1 if one is damaged or missing; damaged ones are set aside."""
    from filmroll.store.upkeep.verify import verify as verified
    from filmroll.view.store_tables import progress
    from filmroll.view.words import size

    damaged = 0
    for store in _stores(places):
        say(store.shelf.uri(""))
        with progress() as report:
            done = verified(store, report)
        for finding in done.foreign:
            say(f"  foreign  {finding.key}: {finding.problem}")
        for finding in done.damaged:
            say(f"  DAMAGED  {finding.key}: {finding.problem}")
        damaged += len(done.damaged)
        verdict = f"{len(done.damaged):,} findings" if done.damaged else "all whole"
        say(f"  {done.images:,} images, {size(done.nbytes)}: {verdict}")
    if damaged:
        raise typer.Exit(1)


@store_app.command()
def stats(
    places: Places,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON for each store.")] = False,
) -> None:
    """Count what a store holds, and who needs it."""
    from filmroll.store.upkeep.stats import census
    from filmroll.view.store_tables import show_census

    for store in _stores(places):
        counted = census(store)
        if as_json:
            typer.echo(msgspec.json.encode({"store": store.shelf.uri(""), **msgspec.to_builtins(counted)}))
        else:
            show_census(store.shelf.uri(""), counted)


@store_app.command()
def forget(place: Place, manifest: Named = "") -> None:
    """Let go of a run's images: gc then removes those that nothing else refers to."""
    chosen = _manifest(place, manifest)
    labels = chosen.forget()
    say(f"{chosen.name}: let go of {labels:,} labels; `filmroll store gc` removes what nothing else refers to")


@store_app.command("export")
def export_(
    place: Place,
    archive: Annotated[Path, typer.Argument(help="The new file, a plain tar.")],
    manifest: Named = "",
) -> None:
    """Write all images that a run refers to into one file, to take them elsewhere."""
    from filmroll.store.upkeep.archive import export_archive

    head = export_archive(_manifest(place, manifest), archive)
    say(f"{archive}: {head.images:,} images of {head.manifest} in {head.labels:,} labels")


@store_app.command("import")
def import_(
    archive: Annotated[Path, typer.Argument(help="What `filmroll store export` has written.")],
    place: Annotated[
        str, typer.Argument(metavar="STORE", help="A store's folder, which may be new; its URL; or a run.")
    ],
) -> None:
    """Take an archive's images into a store, and note there that they are needed."""
    from filmroll.store.upkeep.archive import import_archive

    store, _ = _open(place)
    head = import_archive(archive, store)
    say(f"{store.shelf.uri('')}: {head.images:,} images of {head.manifest} in {head.labels:,} labels")


def _stores(places: list[str]) -> Iterator[Store]:
    """Each store that is meant, once; one that is not there yet holds nothing."""
    seen = set()
    for place in places:
        store, manifest = _open(place)
        folder = _folder(store)
        if folder is not None and not os.path.isdir(folder):  # noqa: PTH112 - Path raises where a name is too long
            if manifest is None:
                raise ConfigError(f"{place} is neither a run's folder nor a store", remedy="Name a folder, or a URL")
            say(f"{store.shelf.uri('')}\n  there is nothing yet")
            continue
        identity = str(folder.resolve()) if folder is not None else store.shelf.uri("")
        if identity not in seen:
            seen.add(identity)
            yield store


def _open(place: str) -> tuple[Store, str | None]:
    """A run's store and the name of its manifest, or just a store."""
    from filmroll.run.directory import RunDirectory
    from filmroll.store import open_store

    with suppress(OSError, ValueError, RuntimeError):
        folder = Path(place).expanduser()
        if (folder / "config.json").is_file():
            run = RunDirectory.open(folder)
            return run.open_store(run.config()), run.manifest_name()
    return open_store(place), None


def _folder(store: Store) -> Path | None:
    from filmroll.store.shelves.files import FileShelf

    return store.shelf.root if isinstance(store.shelf, FileShelf) else None


def _manifest(place: str, name: str) -> Manifest:
    from filmroll.store import Manifest
    from filmroll.store.upkeep.manifests import every_label

    store, own = _open(place)
    manifest = Manifest(store, name or own or _unnamed(place))
    if not manifest.labels():
        known = sorted({label.manifest for label in every_label(store.shelf)})
        raise ConfigError(
            f"the store knows of nothing that {manifest.name} refers to",
            remedy=f"It knows of {', '.join(known[:20])}" if known else "It knows of no run at all",
        )
    return manifest


def _unnamed(place: str) -> str:
    raise ConfigError(f"{place} is a store, not a run", remedy="Say which --manifest of it is meant")
