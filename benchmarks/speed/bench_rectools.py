"""RecTools: SASRecModel with softmax loss, as its documentation uses it. One JSON line; see harness.py."""

from __future__ import annotations

import logging
import time
import warnings

from harness import Answers, Meter, Watch, arguments, emit, peak_rss_mb


def main() -> None:
    a = arguments("RecTools")
    watch, meter = Watch(), Meter(a)
    warnings.filterwarnings("ignore")
    with watch("import"):
        import numpy as np
        import pandas as pd
        import pytorch_lightning as pl
        import rectools
        import torch
        from rectools import Columns
        from rectools.dataset import Dataset
        from rectools.metrics import NDCG, HitRate, calc_metrics
        from rectools.models import SASRecModel

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(a.threads)
    pl.seed_everything(a.seed, workers=False)

    class Count(pl.Callback):
        def on_train_start(self, trainer, module):
            meter.begin()

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            x, y = batch["x"], batch["y"]
            if meter.step(len(x), x.numel(), int((x != 0).sum()), int((y != 0).sum())):
                raise KeyboardInterrupt  # the quickest way out of a fit that RecTools owns

    def trainer():
        return pl.Trainer(
            max_epochs=a.epochs,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[Count()],
        )

    with watch("prepare"):
        log = pd.read_csv(a.data, sep="\t", names=["user_id", "item_id", "weight", "datetime"], header=0)
        log["datetime"] = pd.to_datetime(log["datetime"], unit="s")
        log = log.sort_values(["user_id", "datetime"], kind="stable")
        from_end = log.groupby("user_id").cumcount(ascending=False)
        history_log, test_log = log[from_end >= 1], log[from_end == 0]
        train, history = Dataset.construct(log[from_end >= 2]), Dataset.construct(history_log)

    model = SASRecModel(
        n_factors=a.hidden_size,
        n_blocks=a.num_layers,
        n_heads=a.num_heads,
        dropout_rate=a.dropout,
        session_max_len=a.max_length,
        batch_size=a.batch_size,
        lr=a.learning_rate,
        epochs=a.epochs,
        loss="softmax",
        recommend_batch_size=a.eval_batch_size,
        recommend_torch_device="cpu",
        get_trainer_func=trainer,
    )
    start = time.perf_counter()
    try:
        model.fit(train)
    except (KeyboardInterrupt, SystemExit):
        pass
    model.is_fitted = True
    watch.seconds["prepare"] += meter.rows[0][0] - start  # fit builds its sequences before it trains
    train_rss = peak_rss_mb()

    answers, results = Answers(a), {}

    def recommend(filter_viewed: bool):
        with torch.no_grad():
            return model.recommend(history_log["user_id"].unique(), history, k=10, filter_viewed=filter_viewed)

    def lists(table) -> dict[int, list[int]]:
        table = table.sort_values([Columns.User, Columns.Rank])
        users, first = np.unique(table[Columns.User].to_numpy(), return_index=True)
        return {
            int(u): list(i) for u, i in zip(users, np.split(table[Columns.Item].to_numpy(), first[1:]), strict=True)
        }

    if a.evaluation != "none":
        model.lightning_model.eval()
        with watch("evaluate"):
            with watch("top10"):
                table = recommend(False)
            metrics = {"hr": HitRate(10), "ndcg": NDCG(10, divide_by_achievable=True)}
            own = calc_metrics(metrics, reco=table, interactions=test_log)
        results = {
            "eval_users_per_s": answers.rate(watch.seconds["evaluate"]),
            "top10_users_per_s": answers.rate(watch.seconds["top10"]),
            "own_metrics": {name: round(float(value), 4) for name, value in own.items()},
            **answers.quality(lists(table)),
        }
    if a.evaluation == "full":
        with watch("top10_unseen"):
            table = recommend(True)
        results["top10_unseen_users_per_s"] = answers.rate(watch.seconds["top10_unseen"])
        results |= answers.quality(lists(table), "_unseen")
    emit(
        a,
        "rectools",
        rectools.__version__,
        watch,
        **meter.report(answers.epoch_targets),
        **results,
        **answers.facts,
        train_rss_mb=train_rss,
    )


if __name__ == "__main__":
    main()
