"""RePlay: SasRec on its Parquet pipeline, as in its own example. `--variant bucket` wraps the encoder in its own
LengthBucketedQueryEncoder. One JSON line; see harness.py."""

from __future__ import annotations

import logging
import os
import warnings
from importlib.metadata import version

from harness import Answers, Meter, Watch, arguments, emit, peak_rss_mb


def main() -> None:
    a = arguments("RePlay", "bucket: sequences of similar length are encoded together")
    watch, meter = Watch(), Meter(a)
    warnings.filterwarnings("ignore")
    with watch("import"):
        import lightning as L
        import numpy as np
        import pandas as pd
        import torch
        from replay.data import FeatureHint, FeatureType
        from replay.data.nn import ParquetModule, TensorFeatureInfo, TensorSchema
        from replay.data.nn.utils import groupby_sequences
        from replay.nn.lightning import LightningModule
        from replay.nn.lightning.callback import ComputeMetricsCallback, PandasTopItemsCallback
        from replay.nn.lightning.optimizer import OptimizerFactory
        from replay.nn.lightning.postprocessor import SeenItemsFilter
        from replay.nn.sequential import LengthBucketedQueryEncoder, SasRec
        from replay.nn.transform.template import make_default_sasrec_transforms
        from replay.preprocessing import LabelEncoder, LabelEncodingRule
        from replay.splitters import LastNSplitter

    for name in ("lightning.pytorch", "lightning", "replay"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(a.threads)
    L.seed_everything(a.seed, verbose=False)
    train_path, test_path = (os.path.join(a.scratch, f"{part}.parquet") for part in ("train", "test"))

    with watch("prepare"):
        log = pd.read_csv(a.data, sep="\t", names=["user_id", "item_id", "rating", "timestamp"], header=0)
        log = log.drop(columns=["rating"]).sort_values("timestamp")
        encoder = LabelEncoder([LabelEncodingRule("user_id"), LabelEncodingRule("item_id")])
        splitter = LastNSplitter(N=1, divide_column="user_id", query_column="user_id", strategy="interactions")
        history, truth = splitter.split(encoder.fit_transform(log))
        train, _ = splitter.split(history)
        train, history, truth = (
            groupby_sequences(events=events, groupby_col="user_id", sort_col="timestamp")
            for events in (train, history, truth)
        )
        truth = truth[["user_id", "item_id"]].rename(columns={"item_id": "ground_truth"})
        history = history.merge(truth, on="user_id", how="left")
        history["seen_ids"] = history["item_id"]
        train.to_parquet(train_path)
        history.to_parquet(test_path)
        num_items = len(encoder.mapping["item_id"])
        item = TensorFeatureInfo(
            name="item_id",
            is_seq=True,
            padding_value=num_items,
            cardinality=num_items,
            embedding_dim=a.hidden_size,
            feature_type=FeatureType.CATEGORICAL,
            feature_hint=FeatureHint.ITEM_ID,
        )
        schema = TensorSchema([item])

    class Count(L.Callback):
        def on_train_start(self, trainer, module):
            meter.begin()

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            mask = batch["padding_mask"]
            if meter.step(len(mask), mask.numel(), int(mask.sum()), int(batch["target_padding_mask"].sum())):
                raise KeyboardInterrupt

    net = SasRec.from_params(
        schema=schema,
        embedding_dim=a.hidden_size,
        max_sequence_length=a.max_length,
        num_heads=a.num_heads,
        num_blocks=a.num_layers,
        dropout=a.dropout,
    )
    if a.variant == "bucket":
        net.body.encoder = LengthBucketedQueryEncoder(net.body.encoder, bucket_size=max(1, a.batch_size // 4))
    module = LightningModule(net, optimizer_factory=OptimizerFactory(learning_rate=a.learning_rate))

    def trainer(*callbacks, **options):
        return L.Trainer(
            callbacks=list(callbacks),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            accelerator="cpu",
            devices=1,
            **options,
        )

    data = ParquetModule(
        train_path=train_path,
        batch_size=a.batch_size,
        transforms=make_default_sasrec_transforms(schema),
        metadata={"train": {"item_id": {"shape": a.max_length + 1, "padding": num_items}}},
    )
    try:
        trainer(Count(), max_epochs=a.epochs, limit_val_batches=0, num_sanity_val_steps=0).fit(module, datamodule=data)
    except (KeyboardInterrupt, SystemExit):
        pass
    train_rss = peak_rss_mb()

    answers, results = Answers(a), {}
    columns = {
        "user_id": {},
        "item_id": {"shape": a.max_length, "padding": num_items},
        "ground_truth": {"shape": 1, "padding": -1},
        "seen_ids": {"shape": int(history["item_id"].map(len).max()), "padding": -1},
    }

    def part(stage: str, leave_out: tuple[str, ...]):
        return ParquetModule(
            batch_size=a.eval_batch_size,
            transforms=make_default_sasrec_transforms(schema),
            metadata={stage: {name: how for name, how in columns.items() if name not in leave_out}},
            **{f"{stage}_path": test_path},
        )

    def predict(clock: str, filter_seen: bool) -> dict[int, list[int]]:
        callback = PandasTopItemsCallback(
            top_k=10,
            query_column="user_id",
            item_column="item_id",
            rating_column="score",
            postprocessors=[SeenItemsFilter(num_items)] if filter_seen else None,
        )
        leave_out = ("ground_truth",) if filter_seen else ("ground_truth", "seen_ids")
        with watch(clock):
            trainer(callback, inference_mode=True).predict(
                module, datamodule=part("predict", leave_out), return_predictions=False
            )
            table = callback.get_result()
        users, items = table["user_id"].to_numpy()[::10], table["item_id"].to_numpy().reshape(-1, 10)
        user_of, item_of = encoder.inverse_mapping["user_id"], encoder.inverse_mapping["item_id"]
        users, items = users.astype(np.int64).tolist(), items.astype(np.int64).tolist()
        return {user_of[u]: [item_of[i] for i in row] for u, row in zip(users, items, strict=True)}

    if a.evaluation != "none":
        module.eval()
        metrics = ComputeMetricsCallback(metrics=["ndcg", "recall"], ks=[10], item_count=num_items, verbose=False)
        tester = trainer(metrics, inference_mode=True)
        with watch("evaluate"):
            tester.test(module, datamodule=part("test", ("seen_ids",)), verbose=False)
        results["eval_users_per_s"] = answers.rate(watch.seconds["evaluate"])
        results["own_metrics"] = {name: round(float(value), 4) for name, value in tester.callback_metrics.items()}
    if a.evaluation == "full":
        results |= answers.quality(predict("top10", False))
        results |= answers.quality(predict("top10_unseen", True), "_unseen")
        for clock in ("top10", "top10_unseen"):
            results[f"{clock}_users_per_s"] = answers.rate(watch.seconds[clock])
    emit(
        a,
        "replay",
        version("replay-rec"),
        watch,
        **meter.report(answers.epoch_targets),
        **results,
        **answers.facts,
        train_rss_mb=train_rss,
    )


if __name__ == "__main__":
    main()
