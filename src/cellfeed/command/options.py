"""The options of the ``cellfeed`` command, in groups."""

import dataclasses
from typing import Annotated, Any, Literal

import typer

from cellfeed.sources.retry import RETRY_DEADLINE_S


def option(panel: str, text: str, *names: str, **more: Any) -> Any:
    """Return an option in a group of the help."""
    return typer.Option(*names, help=text, rich_help_panel=panel, **more)


@dataclasses.dataclass(kw_only=True)
class Access:
    """Options for opening a store."""

    region: Annotated[str | None, option("Access", "Region of a store on S3; us-west-2 for the Census.")] = None
    anonymous: Annotated[bool, option("Access", "Send no credentials: for public buckets.", "--anonymous")] = False
    retry_deadline: Annotated[
        float, option("Access", "Duration of retries of a request to an object store.", metavar="SECONDS")
    ] = RETRY_DEADLINE_S

    def parameters(self) -> dict[str, Any]:
        """Return the options as parameters of :class:`cellfeed.ExperimentDataset`."""
        settings = {"vfs.s3.region": self.region, "vfs.s3.no_sign_request": "true" if self.anonymous else None}
        config = {name: value for name, value in settings.items() if value is not None}
        context = None
        if config:
            import tiledbsoma as soma

            context = soma.SOMATileDBContext(tiledb_config=config)
        return {"context": context, "retry_deadline_s": self.retry_deadline}


@dataclasses.dataclass(kw_only=True)
class DatasetOptions:
    """Options with the names of parameters of :class:`cellfeed.ExperimentDataset`."""

    measurement_name: Annotated[str, option("Cells", "Measurement of the experiment.")] = "RNA"
    X_name: Annotated[
        str | None, option("Cells", "Layer of X; by default raw of an experiment, X of an AnnData.", "--x-name")
    ] = None
    obs_query: Annotated[
        str | None,
        option("Cells", "Value filter on obs: \"tissue == 'lung'\".", "--obs-filter", callback=lambda it: it or None),
    ] = None
    memory_budget: Annotated[str, option("Reading", "Memory for reading and shuffling.")] = "2 GiB"
    seed: Annotated[int, option("Reading", "Seed of the order of cells.")] = 0

    def parameters(self, access: Access, **others: Any) -> dict[str, Any]:
        """Return all options of a command as parameters of the dataset."""
        return {**others, **dataclasses.asdict(self), **access.parameters()}


def _listed(text: str | None) -> list[str] | None:
    """Return the names in a text with commas."""
    return [name.strip() for name in text.split(",") if name.strip()] if text else None


_Join = Literal["union", "intersection"]


@dataclasses.dataclass(kw_only=True)
class CopyOptions:
    """Options with the names of parameters of :func:`cellfeed.command.copy.run`."""

    obs_query: Annotated[str | None, option("Cells", "Value filter on obs: \"tissue == 'lung'\".", "--where")] = None
    layer: Annotated[
        str | None,
        option("Cells", "X, layers/NAME or raw/X; by default the first that holds counts. Of SOMA: NAME, or raw."),
    ] = None
    measurement_name: Annotated[str, option("Cells", "Measurement of a SOMA experiment.")] = "RNA"
    genes: Annotated[
        str | None, option("Genes", "Genes to keep: A,B,C, or a file with a name per line.", metavar="GENES|FILE")
    ] = None
    var_column: Annotated[str | None, option("Genes", "Column of var that names genes. Default: the names of var.")] = (
        None
    )
    join_genes: Annotated[_Join, option("Several sources", "Take the genes of any source, or of all.")] = "union"
    join_obs: Annotated[_Join, option("Several sources", "Take the columns of obs of any source, or of all.")] = "union"
    obs_columns: Annotated[
        str | None, option("Output", "Columns of obs to keep: a,b,c. Default: all.", "--obs", metavar="COLUMNS")
    ] = None
    compression: Annotated[
        Literal["lz4", "zstd"], option("Output", "lz4 is read faster; zstd takes a fifth less space.")
    ] = "lz4"
    workers: Annotated[
        int,
        option("Output", "Processes that write parts of a million cells each: a collection. Needs dask.", min=1),
    ] = 1
    memory_budget: Annotated[str, option("Reading", "Memory for reading and shuffling, per process.")] = "384 MiB"

    def parameters(self, access: Access) -> dict[str, Any]:
        """Return all options of the command as parameters."""
        return {**dataclasses.asdict(self), "obs_columns": _listed(self.obs_columns), **access.parameters()}


def _check_picture(file: str | None) -> str | None:
    """Raise an error, before any work, if the picture cannot be drawn."""
    from cellfeed.command.plot import check_file

    try:
        return None if file is None else str(check_file(file))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


Source = Annotated[str, typer.Argument(metavar="SOURCE", help="Folder or URI of a SOMA experiment.")]
Copied = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE...",
        help="A SOMA experiment, or one or several AnnData: .h5ad files, zarr stores or collections.",
    ),
]
BatchSize = Annotated[int, option("Reading", "Cells per minibatch.")]
Sparse = Annotated[bool, option("Reading", "Make CSR minibatches instead of dense ones.", "--sparse")]
Label = Annotated[str | None, option("Mixing", "Column of obs to mix, such as dataset_id. Default: the worst case.")]
Mixing = Annotated[str | None, option("Mixing", "Least effective over nominal batch size: 0.9 or 90%.")]
Speed = Annotated[bool, option("Measuring", "Read X to measure each setting.", "--speed")]
Seconds = Annotated[float, option("Measuring", "Duration from the first minibatch on.")]
Picture = Annotated[
    str | None, option("Output", "Draw a .png, .svg or .pdf file.", metavar="FILE", callback=_check_picture)
]
Json = Annotated[bool, option("Output", "Print JSON.", "--json")]
