"""RecBole: SASRec with cross-entropy. It makes one sample of every prefix and scores only its last position, so a step
of 128 samples has 128 targets. One JSON line; see harness.py."""

from __future__ import annotations

import os
import warnings

from harness import Answers, Meter, Watch, arguments, emit, peak_rss_mb


class Stop(Exception):
    """Leaves RecBole's training loop."""


def main() -> None:
    a = arguments("RecBole")
    watch, meter = Watch(), Meter(a)
    warnings.filterwarnings("ignore")
    with watch("import"):
        import numpy as np
        import recbole
        import torch
        from recbole.config import Config
        from recbole.data import create_dataset, data_preparation
        from recbole.utils import get_model, get_trainer, init_seed
        from recbole.utils.case_study import full_sort_topk

    torch.set_num_threads(a.threads)
    folder = a.data.parent
    settings = {
        "data_path": str(folder.parent),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "USER_ID_FIELD": "user_id",
        "ITEM_ID_FIELD": "item_id",
        "TIME_FIELD": "timestamp",
        "MAX_ITEM_LIST_LENGTH": a.max_length,
        "train_batch_size": a.batch_size,
        "eval_batch_size": a.eval_batch_size,
        "train_neg_sample_args": None,
        "loss_type": "CE",
        "learning_rate": a.learning_rate,
        "epochs": a.epochs,
        "seed": a.seed,
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full", "group_by": "user"},
        "metrics": ["Hit", "NDCG"],
        "topk": [10],
        "valid_metric": "NDCG@10",
        "use_gpu": False,
        "worker": 0,
        "n_layers": a.num_layers,
        "n_heads": a.num_heads,
        "hidden_size": a.hidden_size,
        "inner_size": a.hidden_size,
        "hidden_dropout_prob": a.dropout,
        "attn_dropout_prob": a.dropout,
        "checkpoint_dir": a.scratch,
        "show_progress": False,
        "state": "ERROR",
        "reproducibility": False,
    }
    os.chdir(a.scratch)  # it writes its logs into the current folder
    with watch("prepare"):
        config = Config(model="SASRec", dataset=folder.name, config_dict=settings)
        init_seed(a.seed, False)
        dataset = create_dataset(config)
        train_data, _, test_data = data_preparation(config, dataset)
    prepare_rss = peak_rss_mb()

    model = get_model("SASRec")(config, train_data._dataset)
    trainer = get_trainer(config["MODEL_TYPE"], "SASRec")(config, model)
    calculate_loss, optimizer_step = model.calculate_loss, trainer.optimizer.step
    batch = {}

    def counted_loss(interaction):
        batch["rows"], batch["real"] = len(interaction), int(interaction[model.ITEM_SEQ_LEN].sum())
        return calculate_loss(interaction)

    def counted_step(*args, **options):
        result = optimizer_step(*args, **options)
        if meter.step(batch["rows"], batch["rows"] * a.max_length, batch["real"], batch["rows"]):
            raise Stop
        return result

    model.calculate_loss, trainer.optimizer.step = counted_loss, counted_step
    meter.begin()
    try:
        trainer.fit(train_data, None, saved=False, show_progress=False, verbose=False)
    except Stop:
        pass
    train_rss = peak_rss_mb()

    answers, results = Answers(a), {}
    if a.evaluation != "none":
        model.eval()
        with watch("evaluate"):
            own = trainer.evaluate(test_data, load_best_model=False, show_progress=False)
        results["eval_users_per_s"] = answers.rate(watch.seconds["evaluate"])
        results["own_metrics"] = {name: float(value) for name, value in own.items()}
    if a.evaluation == "full":
        users, best = test_data.dataset.inter_feat["user_id"].numpy(), []
        with watch("top10"):
            for start in range(0, len(users), a.eval_batch_size):
                rows = users[start : start + a.eval_batch_size]
                _, top = full_sort_topk(rows, model, test_data, k=10, device=torch.device("cpu"))
                best.append(dataset.id2token("item_id", top.numpy()))
        names = dataset.id2token("user_id", users)
        lists = {int(u): [int(i) for i in row] for u, row in zip(names, np.concatenate(best), strict=True)}
        results["top10_users_per_s"] = answers.rate(watch.seconds["top10"])
        results |= answers.quality(lists)  # it offers no exclusion of seen items for sequential models
    emit(
        a,
        "recbole",
        recbole.__version__,
        watch,
        **meter.report(answers.all_targets),
        **results,
        **answers.facts,
        train_samples=len(train_data._dataset),
        prepare_rss_mb=prepare_rss,
        train_rss_mb=train_rss,
    )


if __name__ == "__main__":
    main()
