"""Uses cellfeed without optional libraries, and prints the errors of the modules that need one.

python -m tests.programs.bare URI
"""

import importlib
import json
import pkgutil
import sys

OPTIONAL = {"accelerate", "cellxgene_census", "lightning", "pytorch_lightning", "ray", "scvi", "skmisc"}


class Without:
    """A finder of modules that does not find the optional ones."""

    def __init__(self, finder):
        self._finder = finder

    def __getattr__(self, name):
        return getattr(self._finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in OPTIONAL else self._finder.find_spec(name, path, target)


def main():
    sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
    import cellfeed

    dataset = cellfeed.ExperimentDataset(sys.argv[1], batch_size=10, seed=0, obs_column_names=["label"])
    record = {"cells": sum(len(X) for X, obs in cellfeed.experiment_dataloader(dataset))}
    for module in pkgutil.iter_modules(cellfeed.__path__):
        try:
            importlib.import_module(f"cellfeed.{module.name}")
        except cellfeed.MissingDependencyError as error:
            assert isinstance(error, ImportError)
            assert isinstance(error, cellfeed.CellfeedError)
            record[module.name] = str(error)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
