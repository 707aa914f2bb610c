"""The published article's code, with the import changed, on a Census-shaped store."""

import cellxgene_census
import tiledbsoma as soma
import torch

import cellfeed
from tests.support.census import write_tongues


def test_article(tmp_path):
    uri, obs = write_tongues(tmp_path / "census")
    census = cellxgene_census.open_soma(uri=uri)

    experiment = census["census_data"]["homo_sapiens"]
    experiment_datapipe = cellfeed.ExperimentDataPipe(
        experiment,
        measurement_name="RNA",
        X_name="raw",
        obs_query=soma.AxisQuery(value_filter="tissue_general == 'tongue' and is_primary_data == True"),
        obs_column_names=["cell_type"],
        batch_size=128,
        shuffle=True,
    )
    assert experiment_datapipe.shape[0] == ((obs.tissue_general == "tongue") & obs.is_primary_data).sum()
    train_datapipe, test_datapipe = experiment_datapipe.random_split(weights={"train": 0.8, "test": 0.2}, seed=1)
    experiment_dataloader = cellfeed.experiment_dataloader(train_datapipe)

    cell_type_encoder = experiment_datapipe.obs_encoders["cell_type"]
    model = torch.nn.Linear(experiment_datapipe.shape[1], len(cell_type_encoder.classes_))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-05)
    loss_fn = torch.nn.CrossEntropyLoss()
    for _ in range(2):
        for X_batch, y_batch in experiment_dataloader:
            optimizer.zero_grad()
            outputs = model(X_batch)
            loss = loss_fn(outputs, y_batch.flatten())
            loss.backward()
            optimizer.step()
    n_train = sum(len(X) for X, _ in experiment_dataloader)
    n_test = sum(len(X) for X, _ in cellfeed.experiment_dataloader(test_datapipe))
    assert n_train + n_test == experiment_datapipe.shape[0]
    X_batch, y_batch = next(iter(cellfeed.experiment_dataloader(test_datapipe)))
    predicted = cell_type_encoder.inverse_transform(model(X_batch).argmax(dim=1))
    assert set(predicted) <= {"basal cell", "fibroblast", "T cell"}
    census.close()
