"""lightrec: SASRec with full softmax, trained and tested by a Trainer from a SequenceDataModule. One JSON line; see
harness.py. Variants, a comma list, change one thing each:

* none: the product's defaults at the size of the comparison; its dropout draws masks cheaply (p to 2**-16);
* `attndrop`: attention weights are dropped too, as the peers do;
* `torchdrop`: torch's own dropout, which draws one Bernoulli variable at a time, as the peers do;
* `bf16head`: the three matrix products with the catalog in bfloat16;
* `bare`: the same module, data and optimizer in a bare loop: the difference is what Lightning costs.
"""

from __future__ import annotations

import logging
import os
import warnings

from harness import Answers, Meter, Watch, arguments, emit, peak_rss_mb


def main() -> None:
    a = arguments("lightrec", "comma list of attndrop, torchdrop, bf16head, bare")
    variants = set(filter(None, a.variant.split(",")))
    if unknown := variants - {"attndrop", "torchdrop", "bf16head", "bare"}:
        raise SystemExit(f"unknown variant {', '.join(sorted(unknown))}")
    watch, meter = Watch(), Meter(a)
    warnings.filterwarnings("ignore")
    with watch("import"):
        import lightning as L
        import torch
        from torch import nn

        import lightrec
        from lightrec import SequenceDataModule
        from lightrec.data.options import Protocol
        from lightrec.interfaces import total
        from lightrec.models.sasrec import SASRec
        from lightrec.nn.dropout import Dropout
        from lightrec.recommender import AdamW

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(a.threads)
    L.seed_everything(a.seed, verbose=False)

    def data_module(exclude_seen: bool) -> SequenceDataModule:
        data = SequenceDataModule(
            path=str(a.data),
            max_length=a.max_length,
            batch_size=a.batch_size,
            eval_batch_size=a.eval_batch_size,
            protocol=Protocol(exclude_seen=exclude_seen),
            seed=a.seed,
            cache_dir=os.path.join(a.scratch, "cache"),
        )
        _ = data.num_items, data.parts, data.item_counts  # read or prepared here, and not at the first batch
        return data

    with watch("prepare"):
        data = data_module(exclude_seen=False)
    model = SASRec(
        num_items=data.num_items,
        max_length=a.max_length,
        hidden_size=a.hidden_size,
        num_layers=a.num_layers,
        num_heads=a.num_heads,
        inner_size=a.hidden_size,
        dropout=a.dropout,
        attention_dropout=a.dropout if "attndrop" in variants else 0.0,
        head_dtype="bfloat16" if "bf16head" in variants else "float32",
        optimizer=AdamW(learning_rate=a.learning_rate),
    )
    if "torchdrop" in variants:
        for module in list(model.modules()):
            for name, child in module.named_children():
                if isinstance(child, Dropout):
                    setattr(module, name, nn.Dropout(child.p))

    def note(batch) -> bool:
        rows, targets = len(batch), int((batch.lengths - 1).sum())
        return meter.step(rows, rows * (batch.item_ids.shape[1] - 1), targets, targets)

    class Count(L.Callback):
        def on_train_start(self, trainer, module):
            meter.begin()

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            trainer.should_stop = note(batch)

    def trainer(**options) -> L.Trainer:
        return L.Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **options,
        )

    def bare_loop() -> None:
        optimizer, loader = model.configure_optimizers(), data.train_dataloader()
        model.train()
        meter.begin()
        for epoch in range(a.epochs):
            loader.set_epoch(epoch)
            for batch in loader:
                loss = total(model.loss(batch))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if note(batch):
                    return

    if "bare" in variants:
        bare_loop()
    else:
        fit = trainer(max_epochs=a.epochs, callbacks=[Count()], limit_val_batches=0, num_sanity_val_steps=0)
        fit.fit(model, datamodule=data)
    train_rss = peak_rss_mb()

    answers, results = Answers(a), {}
    with watch("prepare_again"):  # finds the cache
        unseen_data = data_module(exclude_seen=True)
    if a.evaluation != "none":
        own = {}
        for clock, module in (("eval", data), ("eval_unseen", unseen_data)):
            tester = trainer()
            with watch(clock):
                tester.test(model, datamodule=module, verbose=False)
            results[f"{clock}_users_per_s"] = answers.rate(watch.seconds[clock])
            own[clock] = {
                name: round(float(tester.callback_metrics[f"test/{name}"]), 4) for name in ("hr@10", "ndcg@10")
            }
        results["own_metrics"] = own
    if a.evaluation == "full":
        model.eval()
        for clock, suffix, module in (("top10", "", data), ("top10_unseen", "_unseen", unseen_data)):
            users, lists = [], []
            with watch(clock), torch.inference_mode():
                for batch in module.test_dataloader():
                    users += batch.user_ids.tolist()
                    lists += model.recommend(batch, 10)[0].tolist()
            results[f"{clock}_users_per_s"] = answers.rate(watch.seconds[clock])
            user_ids, item_ids = data.prepared.users.to_list(), [None, *data.catalog.item_ids]
            named = {int(user_ids[u]): [int(item_ids[i]) for i in row] for u, row in zip(users, lists, strict=True)}
            results |= answers.quality(named, suffix)
    emit(
        a,
        "lightrec",
        lightrec.__version__,
        watch,
        **meter.report(answers.epoch_targets),
        **results,
        **answers.facts,
        train_rss_mb=train_rss,
    )


if __name__ == "__main__":
    main()
