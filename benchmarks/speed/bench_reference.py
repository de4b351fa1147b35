"""The yardstick: SASRec as a bare PyTorch loop, with no product around it. One JSON line; see harness.py.

Rows are padded on the right, so causal attention needs no mask; batches hold rows of similar length; the loss is taken
at real positions only, by a cross-entropy that is fused with the item matmul in blocks of rows (the gradient is made in
the forward pass while the block is in cache). Variants, a comma list, change one thing each:

* `naive`: fixed length, loss at every position, whole logits: what the peers do;
* `attndrop`: attention weights are dropped too, as the peers do;
* `fastdrop`: dropout masks from NumPy bytes, p rounded to 1/256, instead of torch's serial Bernoulli draw;
* `bf16head`: the three matrix products with the catalog in bfloat16.
"""

from __future__ import annotations

from harness import Answers, Meter, Watch, arguments, emit, peak_rss_mb

_BLOCK = 1024  # rows of logits at a time; 512 measured the same, 4,096 is 15 % slower
_POOL = 16  # batches that are sorted by length together


def main() -> None:
    a = arguments("reference", "comma list of naive, attndrop, fastdrop, bf16head")
    variants = set(filter(None, a.variant.split(",")))
    if unknown := variants - {"naive", "attndrop", "fastdrop", "bf16head"}:
        raise SystemExit(f"unknown variant {', '.join(sorted(unknown))}")
    watch, meter = Watch(), Meter(a)
    with watch("import"):
        import numpy as np
        import torch
        import torch.nn.functional as F
        from torch import Tensor, nn

    torch.set_num_threads(a.threads)
    torch.manual_seed(a.seed)
    random = np.random.default_rng(a.seed)

    with watch("prepare"):
        try:
            import polars as pl

            log = pl.read_csv(a.data, separator="\t", columns=[0, 1, 3]).to_numpy()
        except ImportError:
            log = np.loadtxt(a.data, skiprows=1, usecols=(0, 1, 3), delimiter="\t", dtype=np.int64)
        log = log[np.lexsort((log[:, 2], log[:, 0]))]
        users, begin = np.unique(log[:, 0], return_index=True)
        names, items = np.unique(log[:, 1], return_inverse=True)
        items = items + 1  # 0 pads
        end = np.append(begin[1:], len(log))
    L, D, H, V = a.max_length, a.hidden_size, a.num_heads, len(names) + 1

    def drop(x: Tensor, training: bool) -> Tensor:
        if not training or not a.dropout:
            return x
        if "fastdrop" not in variants:
            return F.dropout(x, a.dropout)
        level = round(256 * a.dropout)
        draws = torch.from_numpy(random.integers(0, 256, size=x.numel(), dtype=np.uint8)).view(x.shape)
        return x * ((draws >= level).to(x.dtype) * (256 / (256 - level)))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention_norm, self.feed_forward_norm = nn.LayerNorm(D), nn.LayerNorm(D)
            self.qkv, self.output = nn.Linear(D, 3 * D), nn.Linear(D, D)
            self.up, self.down = nn.Linear(D, D), nn.Linear(D, D)

        def forward(self, x: Tensor) -> Tensor:
            split = self.qkv(self.attention_norm(x)).view(*x.shape[:2], 3, H, D // H).permute(2, 0, 3, 1, 4)
            p = a.dropout if self.training and "attndrop" in variants else 0.0
            y = F.scaled_dot_product_attention(*split, is_causal=True, dropout_p=p)
            x = x + drop(self.output(y.transpose(1, 2).reshape(x.shape)), self.training)
            y = drop(F.relu(self.up(self.feed_forward_norm(x))), self.training)
            return x + drop(self.down(y), self.training)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.items, self.positions = nn.Embedding(V, D, padding_idx=0), nn.Embedding(L, D)
            self.blocks, self.norm = nn.ModuleList(Block() for _ in range(a.num_layers)), nn.LayerNorm(D)
            for p in self.parameters():
                if p.dim() > 1:
                    nn.init.xavier_normal_(p)

        def forward(self, item_ids: Tensor, lengths: Tensor) -> Tensor:
            from_end = (L - lengths[:, None] + torch.arange(item_ids.shape[1])).clamp_(0, L - 1)
            x = drop(self.items(item_ids) + self.positions(from_end), self.training)
            for block in self.blocks:
                x = block(x)
            return self.norm(x)

    class BlockedCrossEntropy(torch.autograd.Function):
        @staticmethod
        def forward(ctx, hidden, weight, targets, dtype):
            n, total = len(targets), hidden.new_zeros(())
            grad_hidden, grad_weight, w = torch.empty_like(hidden), torch.zeros_like(weight), weight.to(dtype)
            for rows in (slice(start, start + _BLOCK) for start in range(0, n, _BLOCK)):
                h, y = hidden[rows].to(dtype), targets[rows, None]
                z = (h @ w.T).float()
                peak, gold = z.amax(1, keepdim=True), z.gather(1, y)
                z.sub_(peak).exp_()
                norm = z.sum(1, keepdim=True)
                total += (norm.log() + peak - gold).sum()
                z.div_(norm * n).scatter_add_(1, y, z.new_full((len(y), 1), -1.0 / n))
                z = z.to(dtype)
                grad_hidden[rows] = z @ w
                if dtype == torch.float32:
                    grad_weight.addmm_(z.T, h)
                else:
                    grad_weight += (z.T @ h).float()
            ctx.save_for_backward(grad_hidden, grad_weight)
            return total / n

        @staticmethod
        def backward(ctx, grad):
            grad_hidden, grad_weight = ctx.saved_tensors
            return grad_hidden * grad, grad_weight * grad, None, None

    def windows(rows: np.ndarray, held_out: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """The last `length` items before the held-out ones: [B, L] padded on the right, lengths [B]."""
        last = end[rows] - held_out
        first = np.maximum(begin[rows], last - length)
        columns = np.arange((last - first).max())
        inside = columns < (last - first)[:, None]
        return np.where(inside, items[np.minimum(first[:, None] + columns, len(items) - 1)], 0), last - first

    def batches() -> list[np.ndarray]:
        order = random.permutation(np.flatnonzero(end - begin >= 4))
        if "naive" in variants:
            return np.split(order, range(a.batch_size, len(order), a.batch_size))
        length, cut = np.minimum(end - begin, L + 3), []
        for start in range(0, len(order), a.batch_size * _POOL):
            pool = order[start : start + a.batch_size * _POOL]
            pool = pool[np.argsort(length[pool], kind="stable")]
            cut += np.split(pool, range(a.batch_size, len(pool), a.batch_size))
        return [cut[k] for k in random.permutation(len(cut))]

    net = Net().train()
    optimizer = torch.optim.Adam(net.parameters(), lr=a.learning_rate, betas=(0.9, 0.98), fused=True)

    def loss_of(rows: np.ndarray) -> tuple[Tensor, int, int]:
        ids, lengths = windows(rows, 2, L + 1)
        if "naive" in variants:
            ids = np.pad(ids, ((0, 0), (0, L + 1 - ids.shape[1])))
        lengths = lengths - 1
        inputs, targets = torch.from_numpy(ids[:, :-1]), torch.from_numpy(ids[:, 1:].ravel())
        hidden = net(inputs, torch.from_numpy(lengths)).flatten(0, 1)
        if "naive" in variants:
            loss = F.cross_entropy(hidden @ net.items.weight.T, targets, ignore_index=0)
        else:
            real = torch.from_numpy(np.flatnonzero(np.arange(ids.shape[1] - 1) < lengths[:, None]))
            dtype = torch.bfloat16 if "bf16head" in variants else torch.float32
            loss = BlockedCrossEntropy.apply(hidden[real], net.items.weight, targets[real], dtype)
        return loss, inputs.numel(), int(lengths.sum())

    def train() -> float:
        meter.begin()
        for _ in range(a.epochs):
            for rows in batches():
                loss, padded, real = loss_of(rows)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if meter.step(len(rows), padded, real, real):
                    return float(loss.detach())
        return float(loss.detach())

    last_loss = train()
    train_rss = peak_rss_mb()

    @torch.no_grad()
    def top10(exclude_seen: bool) -> np.ndarray:
        order, best = np.argsort(end - begin, kind="stable"), np.empty((len(users), 10), dtype=np.int64)
        for start in range(0, len(order), a.eval_batch_size):
            rows = order[start : start + a.eval_batch_size]
            ids, lengths = windows(rows, 1, L)
            hidden = net(torch.from_numpy(ids), torch.from_numpy(lengths))
            scores = hidden[torch.arange(len(rows)), torch.from_numpy(lengths - 1)] @ net.items.weight.T
            scores[:, 0] = -torch.inf
            if exclude_seen:
                seen, _ = windows(rows, 1, len(items))
                scores.scatter_(1, torch.from_numpy(seen), -torch.inf)
            best[rows] = scores.topk(10)[1].numpy()
        return best

    answers, results = Answers(a), {}
    if a.evaluation != "none":
        net.eval()
        with watch("evaluate"):
            with watch("top10"):
                best = top10(False)
            own = float((best == items[end - 1][:, None]).any(1).mean())
        with watch("top10_unseen"):
            unseen = top10(True)
        lists = [dict(zip(users.tolist(), names[table - 1].tolist(), strict=True)) for table in (best, unseen)]
        results = {
            "eval_users_per_s": answers.rate(watch.seconds["evaluate"]),
            "top10_users_per_s": answers.rate(watch.seconds["top10"]),
            "top10_unseen_users_per_s": answers.rate(watch.seconds["top10_unseen"]),
            "own_metrics": {"hr": round(own, 4)},
            **answers.quality(lists[0]),
            **answers.quality(lists[1], "_unseen"),
        }
    emit(
        a,
        "reference",
        "1",
        watch,
        **meter.report(answers.epoch_targets),
        **results,
        **answers.facts,
        train_rss_mb=train_rss,
        last_loss=round(last_loss, 4),
    )


if __name__ == "__main__":
    main()
