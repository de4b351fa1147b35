"""SRA-CL: two contrastive losses beside any other objective, whose positives come from similar texts.

Ziqiang Cui, Yunpeng Weng, Xing Tang, Xiaokun Zhang, Shiwei Li, Peiyang Liu, Bowei He, Dugang Liu, Weihong Luo, Xiuqiang
He and Chen Ma, "Semantic Retrieval Augmented Contrastive Learning for Sequential Recommendation", NeurIPS 2025,
https://arxiv.org/abs/2503.04162; code: ziqiangcui/SRA-CL.

    L = L_rec + user_weight L_CS + item_weight L_IS

L_CS draws the state of a history towards a mixture of the states of k similar histories, whose weights are learned from
the text vectors. L_IS draws two views of a history together, in each of which some items were replaced by similar ones.
Nothing of it is left when the model ranks: no text, no table, no cost.

Differences from the authors' code, and why: README.md. Everything is made from the training part of the data.

Shapes: B rows of a batch, D hidden_size, k neighbours, T width of text vectors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightrec import Batch, InputError, Objective
from lightrec.nn.dropout import Dropout
from lightrec.nn.sequence import last_state, real_positions, valid_mask
from lightrec.objectives.next_item import (
    NextItem,
    catalog_cross_entropy,
    mean_over_targets,
    next_item_pairs,
    next_item_rows,
)
from lightrec_sracl import neighbours as retrieval
from lightrec_sracl import text as texts
from lightrec_sracl.neighbours import Pool, Tables

Form = Literal["code", "paper"]
Synthesis = Literal["learned", "mean", "random"]
_PADDED = 2**14  # events that are encoded at a time, padding included
_SHORTEST = 0.8  # of the longest row that is encoded with it: the rest of a row is padding
_PADDED_ON_A_GPU = 2**19  # there a call costs more than the padding
_KEPT_ON_A_GPU = 2**31  # bytes of tables and log; larger ones stay where they are, and what a step needs is fetched


class SRACL(Objective):
    """Any objective, with positives retrieved by text.

    Args:
        objective: what is trained beside; None is the next item, by full softmax at every position.
        hidden_size: D, as the model has it.
        user_weight: alpha, of the loss between histories.
        item_weight: beta, of the loss between two views of one history.
        text: where text vectors come from: `tfidf` (with SVD); `offline:minilm`, from an installed package; a folder or
            a Hugging Face name; FILE.npz with vectors of your own; `collaborative`, who had what, without any text.
        text_columns: columns of the catalog that are read; None is all.
        text_size: T, width of the text vectors.
        num_neighbours: k.
        pool: the histories that can be retrieved: of all `users`, or all `prefixes` of them, as the authors' code has
            it. The latter needs `train_windows: prefixes`.
        exclude_same_user: do not retrieve another prefix of the same user, which may hold the answer.
        trained_items_only: never put an item into a history that training does not know.
        replace: probability that an item is replaced in a view.
        synthesis: weights of the k histories: `learned`, all equal (`mean`), or one at `random`.
        neighbour_gradient: let gradients into the states of similar histories. Without, a step is cheaper, and states
            run after a goal that moves with them: on Amazon Beauty the loss rose from 15 to 40 in five epochs.
        attention_dropout: of the learned weights.
        temperature: divides inner products in both losses.
        form: of both losses: `code`, the 2 B vectors of a batch are each other's negatives; `paper`, a row asks and the
            positives of the other rows are its negatives.
        table: file of neighbours that another run made; it must be of the same data and settings.

    Raises:
        InputError: a number out of its range.
    """

    def __init__(
        self,
        objective: Objective | None = None,
        hidden_size: int = 64,
        user_weight: float = 0.1,
        item_weight: float = 0.1,
        text: str = "tfidf",
        text_columns: list[str] | None = None,
        text_size: int = 384,
        num_neighbours: int = 10,
        pool: Pool = "users",
        exclude_same_user: bool = True,
        trained_items_only: bool = True,
        replace: float = 0.2,
        synthesis: Synthesis = "learned",
        neighbour_gradient: bool = True,
        attention_dropout: float = 0.5,
        temperature: float = 1.0,
        form: Form = "code",
        table: str | None = None,
    ):
        super().__init__()
        for name, value in (("user_weight", user_weight), ("item_weight", item_weight)):
            if value < 0:
                raise InputError(f"{name} ({value}) must not be negative.")
        for name, value in (("num_neighbours", num_neighbours), ("text_size", text_size)):
            if value < 1:
                raise InputError(f"{name} ({value}) must be at least 1.")
        if not 0 <= replace <= 1:
            raise InputError(f"replace ({replace}) must be between 0 and 1: it is a probability.")
        if temperature <= 0:
            raise InputError(f"temperature ({temperature}) must be above 0.")
        for name, value, known in (("form", form, Form), ("synthesis", synthesis, Synthesis), ("pool", pool, Pool)):
            if value not in known.__args__:
                raise InputError(f"{name} {value!r} is unknown; choose {', '.join(known.__args__)}.")
        self.objective = objective or NextItem()
        self.user_weight, self.item_weight = user_weight, item_weight
        self.text, self.text_columns, self.text_size = text, text_columns, text_size
        self.num_neighbours, self.pool, self.exclude_same_user = num_neighbours, pool, exclude_same_user
        self.trained_items_only, self.replace = trained_items_only, replace
        self.synthesis, self.neighbour_gradient = synthesis, neighbour_gradient
        self.temperature, self.form, self.table = temperature, form, table
        learned = user_weight > 0 and synthesis == "learned"
        self.mixture = Mixture(hidden_size, text_size, attention_dropout) if learned else None
        self._hidden_size = hidden_size
        self._tables: Tables | None = None
        self._log: tuple[Tensor, Tensor | None] | None = None  # items and times of the training log
        self._keys: tuple[Tensor, Tensor] | None = None  # sorted keys of the pool, and their entries
        self._of_a_batch = False  # the tables serve one call only

    def connect(self, tables: Tables, items: Tensor, times: Tensor | None = None) -> None:
        """Takes tables and the log [E] that they point into; asked of the data module at the first step otherwise."""
        self._tables, self._log, self._keys, self._of_a_batch = tables, (items, times), None, False

    def forward(self, recommender, batch: Batch) -> Tensor:
        if not (self.user_weight or self.item_weight):
            return self.objective(recommender, batch)
        inputs, _ = next_item_pairs(batch)
        self._find_tables(recommender, inputs)
        self._move_tables(inputs.item_ids.device)
        loss, states = self._base(recommender, batch, inputs)
        if self.user_weight:
            between = self.between_histories(recommender, inputs, states)
            _report(recommender, "train/between_histories", between)
            loss = loss + self.user_weight * between
        if self.item_weight:
            between = self.between_views(recommender, inputs)
            _report(recommender, "train/between_views", between)
            loss = loss + self.item_weight * between
        return loss

    def between_histories(self, recommender, inputs: Batch, states: Tensor) -> Tensor:
        """L_CS of histories whose states are [B, D]; a history without similar ones takes no part."""
        entry = self.entries(inputs)
        near = _look_up(self._tables.neighbours, entry.clamp_min(0))
        near = near.masked_fill(entry[:, None] < 0, -1)
        if self.synthesis == "random":
            near = near.gather(1, _random_place(near >= 0))
        rows = (near >= 0).any(1).nonzero().squeeze(1)
        if len(rows):
            positives = self.synthesise(recommender, entry[rows], near[rows], inputs.timestamps is not None)
            total = info_nce(states.index_select(0, rows), positives, self.temperature, self.form) * len(rows)
        else:  # every parameter takes part in every step, or other processes would wait for this one
            total = sum((p.sum() for p in self.parameters()), states.sum()) * 0.0
        return mean_over_targets(total, max(1, len(rows)))

    def synthesise(self, recommender, entry: Tensor, near: Tensor, with_times: bool = False) -> Tensor:
        """Mixes the states of similar histories: entries of anchors [B], of neighbours [B, k] (-1: none) -> [B, D]."""
        present = near >= 0
        unique, place = near.clamp_min(0).unique(return_inverse=True)
        with nullcontext() if self.neighbour_gradient else torch.no_grad():
            found = _encode(recommender, self.histories(unique, with_times))
        found = F.embedding(place, found)  # [B, k, D]
        if self.mixture is None:
            weights = present / present.sum(1, keepdim=True).clamp_min(1)
        else:
            vectors = (_look_up(self._tables.vectors, ids.clamp_min(0)).to(found.dtype) for ids in (entry, near))
            weights = self.mixture(*vectors, present)
        return (weights.to(found.dtype)[:, None] @ found).squeeze(1)

    def between_views(self, recommender, inputs: Batch) -> Tensor:
        """L_IS: two views of each history, as one batch of 2 B rows."""
        views = inputs.map(lambda t: torch.cat([t, t]))
        one, other = recommender.query(views.replace(item_ids=self.replaced(views))).chunk(2)
        total = info_nce(one, other, self.temperature, self.form) * len(one)
        return mean_over_targets(total, max(1, len(one)))

    def replaced(self, batch: Batch) -> Tensor:
        """Item ids [B, L]; each that has similar ones is replaced by one of them with probability `replace`."""
        ids = batch.item_ids
        near = _look_up(self._tables.item_neighbours, ids)
        has = (near > 0).any(-1)
        chosen = near.gather(-1, _random_place(near > 0)).squeeze(-1)
        drawn = torch.rand(ids.shape, device=ids.device) < self.replace
        return torch.where(drawn & has & valid_mask(batch.lengths, ids.shape[1]), chosen, ids)

    def entries(self, inputs: Batch) -> Tensor:
        """Which entry of the pool the histories of a batch are: [B] int64, -1 for one that is not in it."""
        users = inputs.user_ids
        if self._keys is None:
            self._keys = self._index_pool()
        known, entries = self._keys
        if not len(known):
            return torch.full_like(users, -1)
        sought = users
        if self.pool == "prefixes":
            sought = retrieval.window_keys(inputs.item_ids, inputs.lengths, users)
        sought = sought.to(known.device)
        place = torch.searchsorted(known, sought).clamp_max(len(known) - 1)
        found = torch.where(known[place] == sought, entries[place], -1).to(users.device)
        return found.masked_fill(users < 0, -1)

    def histories(self, entries: Tensor, with_times: bool = False) -> Batch:
        """The histories [m] of the pool as a batch, on the device of `entries`."""
        tables, (items, times) = self._tables, self._log
        at = entries.to(items.device)
        begin, lengths = tables.begin[at], tables.end[at] - tables.begin[at]
        place = torch.arange(int(lengths.max()) if len(lengths) else 1, device=items.device)
        real = place < lengths[:, None]
        place = torch.where(real, begin[:, None] + place, 0)
        timed = with_times and times is not None
        return Batch(
            item_ids=torch.where(real, items[place], 0),
            lengths=lengths,
            user_ids=tables.user[at],
            timestamps=torch.where(real, times[place], 0) if timed else None,
        ).to(entries.device)

    def _base(self, recommender, batch: Batch, inputs: Batch) -> tuple[Tensor, Tensor]:
        """Loss of the objective beside, and the last states [B, D]; one pass for both where that is the next item."""
        self._check_width(recommender)
        if type(self.objective) is not NextItem:
            return self.objective(recommender, batch), recommender.query(inputs) if self.user_weight else None
        positions, name = self.objective.positions, self.objective.head_dtype
        targets, dtype = batch.item_ids[:, 1:], None if name is None else getattr(torch, name)
        if positions == "all":
            if not recommender.encoder.causal:
                return self.objective(recommender, batch), None  # which says why not
            hidden = recommender.encode(inputs)
            states, rows = last_state(hidden, inputs.lengths), real_positions(inputs.lengths, hidden.shape[1])
            hidden, targets = hidden.flatten(0, 1).index_select(0, rows), targets.flatten().index_select(0, rows)
        else:
            hidden, targets = next_item_rows(recommender, batch, positions)
            states = hidden
        total = catalog_cross_entropy(recommender.items, hidden, targets, dtype)
        return mean_over_targets(total, len(targets)), states

    def _check_width(self, recommender) -> None:
        width = recommender.items.hidden_size
        if self.mixture is not None and width != self._hidden_size:
            raise InputError(
                f"SRACL was built for states of {self._hidden_size} numbers, the model has {width}: set "
                f"--model.objective.hidden_size {width}."
            )

    def _index_pool(self) -> tuple[Tensor, Tensor]:
        tables = self._tables
        if self.pool == "users":
            keys = tables.user
        else:
            keys = torch.empty_like(tables.user)
            for rows in torch.arange(len(tables), device=keys.device).split(65536):
                part = self.histories(rows)
                keys[rows] = retrieval.window_keys(part.item_ids, part.lengths, part.user_ids)
        return keys.sort()

    def _find_tables(self, recommender, batch: Batch) -> None:
        if self._tables is not None and not self._of_a_batch:
            return
        trainer = getattr(recommender, "_trainer", None)
        data = getattr(trainer, "datamodule", None)
        if not hasattr(data, "corpus"):
            if self.text != texts.COLLABORATIVE:
                raise InputError(
                    "SRACL retrieves from a training log: train it with a data module, give tables to connect(), or "
                    "set text to collaborative, which then counts in the batch."
                )
            self._count_in(batch, recommender.items.num_items)
            return
        if self.pool == "prefixes" and data.train_windows != "prefixes":
            raise InputError(
                f"pool prefixes finds prefixes only, and --data.train_windows is {data.train_windows}: set it to "
                "prefixes, or --model.objective.pool users."
            )
        first = trainer.global_rank == 0
        if first:
            tables = self.make_tables(data)
        trainer.strategy.barrier()  # the others find what the first one made
        if not first:
            tables = self.make_tables(data)
        items = torch.from_numpy(np.array(data.prepared.items)).long()
        times = data.prepared.times
        self.connect(tables, items, None if times is None else torch.from_numpy(np.array(times)))

    def _move_tables(self, device: torch.device) -> None:
        """Takes the tables and the log to a device where there is room for them, once."""
        items, times = self._log
        if items.device == device:
            return
        if self._tables.nbytes + items.nbytes + (0 if times is None else times.nbytes) > _KEPT_ON_A_GPU:
            return
        self._tables, self._keys = self._tables.to(device), None
        self._log = items.to(device), None if times is None else times.to(device)

    def make_tables(self, data) -> Tables:
        """Finds the neighbours of a SequenceDataModule's training part, or reads them where a run has left them.

        Raises:
            InputError: there is no text, the encoder cannot be had, or `table` is of other data or settings.
        """
        train, log = data.corpus.train, data.prepared
        facts = self._facts(data)
        if self.table is not None:
            return retrieval.load(Path(self.table), facts)
        folder = data.corpus.cache / "sracl"
        path = folder / f"{log.meta['source'] or 'log'}-{retrieval.fingerprint(facts)[:16]}.npz".replace("/", "-")
        if path.exists():
            return retrieval.load(path, facts)
        with _progress() as stage:
            vectors = self._item_vectors(data, folder, stage)
            known = data.item_counts.numpy() > 0
            histories = retrieval.training_pool(
                train.begin, train.end, np.arange(len(train)), data.max_length, self.pool
            )
            tables = self._retrieve(log.items, *histories, vectors, known, stage)
        retrieval.save(path, tables, facts)
        return tables

    def _retrieve(self, items, begin, end, user, vectors, known, stage) -> Tables:
        """Finds neighbours: items [E] with histories [M] in them, vectors [N + 1, T], known [N + 1] bool."""
        near = retrieval.nearest(
            vectors,
            self.num_neighbours,
            allowed=known if self.trained_items_only else None,
            progress=stage(f"similar items of {len(vectors) - 1:,}"),
        )
        histories = retrieval.history_vectors(items, begin, end, vectors)
        found = retrieval.nearest(
            histories,
            self.num_neighbours,
            group=user if self.exclude_same_user else None,
            progress=stage(f"similar histories of {len(begin):,}"),
        )
        return Tables(
            item_neighbours=torch.from_numpy(np.maximum(near, 0)),
            begin=torch.from_numpy(begin.astype(np.int64)),
            end=torch.from_numpy(end.astype(np.int64)),
            user=torch.from_numpy(user.astype(np.int64)),
            neighbours=torch.from_numpy(found),
            vectors=torch.from_numpy(histories.astype(np.float16)),
        )

    def _count_in(self, batch: Batch, num_items: int) -> None:
        """Outside a run a batch is all there is to retrieve from, for this call."""
        lengths, users = batch.lengths.cpu().numpy(), batch.user_ids.cpu().numpy()
        items = batch.item_ids[valid_mask(batch.lengths, batch.item_ids.shape[1])].cpu()
        owner, end = np.repeat(np.arange(len(lengths)), lengths), np.cumsum(lengths)
        vectors = texts.collaborative_vectors(items.numpy(), owner, num_items, self.text_size)
        vectors = np.concatenate([np.zeros((1, self.text_size), np.float32), vectors])
        known, times = np.bincount(items.numpy(), minlength=num_items + 1) > 0, batch.timestamps
        pool = retrieval.training_pool(end - lengths, end, users, batch.item_ids.shape[1], self.pool)
        tables = self._retrieve(items.numpy(), *pool, vectors, known, lambda name: None)
        if times is not None:
            times = times[valid_mask(batch.lengths, batch.item_ids.shape[1])].cpu()
        self.connect(tables, items, times)
        self._of_a_batch = True

    def _item_vectors(self, data, folder: Path, stage) -> np.ndarray:
        """[num_items + 1, T] float32 with rows of length 1; row 0 is zero."""
        log, size = data.prepared, self.text_size
        if self.text == texts.COLLABORATIVE:
            train = data.corpus.train
            place = np.concatenate([np.arange(b, e) for b, e in zip(train.begin, train.end, strict=True)])
            owner = np.repeat(np.arange(len(train.begin)), train.end - train.begin)
            found = texts.collaborative_vectors(np.asarray(log.items)[place], owner, log.num_items, size)
        elif self.text.endswith(".npz"):
            found = texts.read_vectors(self.text, [log.catalog.decode(i + 1) for i in range(log.num_items)], size)
        else:
            columns, given = self._texts(data)
            name = f"text of {len(given):,} items ({', '.join(columns)}), {self.text}"
            # kept apart from the tables: other numbers of neighbours need the same vectors, and a model is slow
            path = folder / f"vectors-{texts.fingerprint(given, self.text, size)}.npy"
            found = texts.encode_texts(given, self.text, size, stage(name), path)
        return np.concatenate([np.zeros((1, size), np.float32), found])

    def _texts(self, data) -> tuple[list[str], list[str]]:
        """The text columns that are read, and the [num_items] texts."""
        source, frame = data.prepared.meta["source"] or "the log", data.catalog.frame
        columns = texts.text_columns(frame, self.text_columns, source)
        return columns, texts.item_texts(frame, columns, source)

    def _facts(self, data) -> dict:
        """Everything that the tables depend on."""
        train, columns, own = data.corpus.train, None, None
        if self.text.endswith(".npz"):
            try:
                own = retrieval.file_hash(self.text)
            except OSError as error:
                raise InputError(f"{self.text}: {error.strerror}: give a file of vectors, or another text.") from error
        elif self.text != texts.COLLABORATIVE:
            columns, given = self._texts(data)
            own = texts.fingerprint(given, self.text, self.text_size)
        return {
            "data": data.prepared.meta["data_sha256"],
            "counts": f"{data.num_users} users, {data.num_items} items, {len(data.prepared.items)} events",
            "training part": retrieval.split_hash(train.begin, train.end, np.arange(len(train))),
            "text": self.text,
            "content of the text": own,
            "text_columns": columns,
            "text_size": self.text_size,
            "num_neighbours": self.num_neighbours,
            "pool": self.pool,
            "max_length": data.max_length,
            "exclude_same_user": self.exclude_same_user,
            "trained_items_only": self.trained_items_only,
        }


class Mixture(nn.Module):
    """Weights of similar histories: softmax of LeakyReLU(a . [W h_u, W h_u']) over those that are there.

    Args:
        hidden_size: D, rows of W.
        text_size: T, columns of W.
        dropout: of the weights, after the softmax, as in the authors' code.
        slope: of the LeakyReLU.
    """

    def __init__(self, hidden_size: int, text_size: int, dropout: float = 0.5, slope: float = 0.2):
        super().__init__()
        self.adapter = nn.Linear(text_size, hidden_size, bias=False)
        self.attention = nn.Parameter(torch.empty(2, hidden_size))
        nn.init.xavier_normal_(self.adapter.weight)
        nn.init.xavier_normal_(self.attention)
        self.dropout, self.slope = Dropout(dropout), slope

    def forward(self, anchors: Tensor, near: Tensor, present: Tensor) -> Tensor:
        """anchors [B, T], near [B, k, T], present [B, k] bool -> [B, k]."""
        of_anchor, of_near = (self.attention @ self.adapter.weight).unbind()  # a . W h is (a W) . h: no B k products
        scores = F.leaky_relu((anchors @ of_anchor)[:, None] + near @ of_near, self.slope)
        scores = scores.masked_fill(~present, torch.finfo(scores.dtype).min)
        return self.dropout(scores.softmax(1) * present)


def info_nce(anchors: Tensor, positives: Tensor, temperature: float = 1.0, form: Form = "code") -> Tensor:
    """Finds the positive of each row among those of the batch, by inner product.

    Args:
        anchors: [B, D].
        positives: [B, D].
        temperature: divides inner products.
        form: `paper`: an anchor against the positives of the other rows; `code`: each of the 2 B vectors against all
            others, anchors too.

    Returns:
        The mean cross-entropy; 0 for a batch of one, or none.
    """
    count, device = len(anchors), anchors.device
    if not count:
        return (anchors.sum() + positives.sum()) * 0.0
    anchors, positives = anchors.float(), positives.float()
    if form == "paper":
        return F.cross_entropy(anchors @ positives.T / temperature, torch.arange(count, device=device))
    both = torch.cat([anchors, positives])
    scores = (both @ both.T / temperature).fill_diagonal_(-torch.inf)
    return F.cross_entropy(scores, torch.arange(2 * count, device=device).roll(count))


def _encode(recommender, batch: Batch) -> Tensor:
    """Last states [m, D] of histories of any lengths, short ones with short ones so that little is padding."""
    order = batch.lengths.argsort(descending=True)
    lengths = batch.lengths[order].tolist()
    padded, shortest = (_PADDED, _SHORTEST) if order.device.type == "cpu" else (_PADDED_ON_A_GPU, 0)
    found, start = [], 0
    while start < len(lengths):
        width = max(1, lengths[start])
        stop = start + 1
        while stop < len(lengths) and lengths[stop] >= shortest * width and (stop - start) * width < padded:
            stop += 1
        found.append(recommender.query(batch.cut(width).rows(order[start:stop])))
        start = stop
    return torch.cat(found)[order.argsort()]


def _look_up(table: Tensor, rows: Tensor) -> Tensor:
    """Rows of a table that may be on another device, on the device of `rows`."""
    return table[rows.to(table.device)].to(rows.device)


def _random_place(allowed: Tensor) -> Tensor:
    """A random index of the last dimension that is allowed: [..., k] -> [..., 1]; 0 where none is."""
    return torch.rand(allowed.shape, device=allowed.device).masked_fill(~allowed, -1.0).argmax(-1, keepdim=True)


def _report(recommender, name: str, value: Tensor) -> None:
    trainer = getattr(recommender, "_trainer", None)
    if trainer is not None and trainer.training:
        recommender.log(name, value.detach(), on_step=False, on_epoch=True, batch_size=1)


@contextmanager
def _progress() -> Iterator:
    """Gives a function from the name of a stage to what is told how far it is; bars where somebody looks."""
    from rich.console import Console
    from rich.progress import Progress, TimeRemainingColumn

    console = Console(stderr=True)
    bars = Progress(*Progress.get_default_columns()[:-1], TimeRemainingColumn(), console=console)
    with bars:

        def stage(name: str):
            task = bars.add_task(name, total=None)
            return lambda done, total: bars.update(task, completed=done, total=total)

        yield stage
