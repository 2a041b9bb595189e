"""The scores of the literature, as pure functions: a larger score is kept longer.

Shapes: H KV heads, G query heads to a KV head, Q new tokens, N tokens held, D head size, W window.
Scores are computed in float32 whatever the type of the model.
"""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, cosine_similarity, normalize, pad


def knorm(keys: Tensor) -> Tensor:
    """Return minus the L2 norm of each key: `-|k_i|`.

    Source: arXiv 2406.11430 (keys of small norm get much attention). A rotation does not change
    the norm, so keys before and after it score alike.

    Args:
        keys: [H, N, D].

    Returns:
        [H, N].
    """
    norms: Tensor = torch.linalg.vector_norm(keys.float(), dim=-1)
    return -norms


def keydiff(keys: Tensor) -> Tensor:
    """Return minus the cosine similarity of each key to the mean direction.

    `-cos(k_i, mean_j k_j/|k_j|)`, on keys after rotation, as a cache holds them.

    Source: arXiv 2504.15364 section 3 (keys unlike the others get much attention).

    Args:
        keys: [H, N, D].

    Returns:
        [H, N].
    """
    keys = keys.float()
    anchor = normalize(keys, dim=-1).mean(dim=-2, keepdim=True)
    return -cosine_similarity(keys, anchor, dim=-1)


def lagkv(keys: Tensor, values: Tensor, *, sinks: int, lag: int) -> Tensor:
    """Return how far the token's key and value reach out of the range of the tokens that follow.

    Source: arXiv 2504.04704. After the sinks the tokens are cut into partitions of `lag`. In each
    channel a token is scaled by least and greatest of the next partition, `(x - min) / (max -
    min)`; the standard deviation over the channels, a softmax over the partition, and the mean of
    that of keys and that of values say how much the token stands out. Each partition gives up the
    same share, so the score is the rank in it, as a share: 0, 1/lag, ... On keys after rotation.

    Args:
        keys: [H, N, D].
        values: [H, N, D].
        sinks: first tokens, not in any partition.
        lag: tokens of a partition; N >= sinks + 2 lag.

    Returns:
        [H, N]; 1 for the sinks, and for the last partition and what comes after, which have
        nothing to be compared with.
    """
    num_heads, num_held, _ = keys.shape
    stop = sinks + (num_held - sinks) // lag * lag
    spread = _spread(keys[:, sinks:stop], lag) + _spread(values[:, sinks:stop], lag)
    rank = spread.argsort(dim=-1, stable=True).argsort(dim=-1)
    scores = torch.ones(num_heads, num_held, device=keys.device)
    scores[:, sinks : stop - lag] = rank.flatten(1) / lag
    return scores


def _spread(states: Tensor, lag: int) -> Tensor:
    """Return shares [H, P - 1, lag] of states [H, P lag, D]; the last partition has none."""
    parts = states.float().reshape(states.shape[0], -1, lag, states.shape[-1])
    here, following = parts[:, :-1], parts[:, 1:]
    least = following.amin(dim=-2, keepdim=True)
    greatest = following.amax(dim=-2, keepdim=True)
    # Only numbers of few bits can be all alike in a channel.
    scaled: Tensor = (here - least) / (greatest - least).clamp_min(1e-6)
    return scaled.std(dim=-1).softmax(dim=-1)


def last_queries(memory: Tensor | None, weights: Tensor, window: int) -> Tensor:
    """Return the newest `window` tokens' attention, averaged over the query heads of a KV head.

    Args:
        memory: that of earlier tokens [H, W', N - Q], if any.
        weights: that of the new tokens [H, G, Q, N].
        window: most queries to keep.

    Returns:
        [H, min(window, W' + Q), N], oldest first; 0 for tokens that came later.
    """
    queries = weights[:, :, -window:].float().mean(dim=1)
    if memory is not None and queries.shape[1] < window:
        earlier = pad(memory, (0, weights.shape[-2]))
        queries = torch.cat([earlier, queries], dim=1)[:, -window:]
    return queries


def accumulated(memory: Tensor | None, weights: Tensor) -> Tensor:
    """Return the attention that each token ever got, summed: H2O's score.

    Source: arXiv 2306.14048 section 4. Averaged over the query heads of a KV head, where the paper
    has one to one.

    Args:
        memory: the sum before [H, 1, N - Q], if any.
        weights: attention of the new tokens [H, G, Q, N].

    Returns:
        [H, 1, N].
    """
    total = weights.float().sum(dim=2).mean(dim=1, keepdim=True)
    if memory is not None:
        total[..., : memory.shape[-1]] += memory
    return total


def tova(queries: Tensor) -> Tensor:
    """Return the attention of the newest token, averaged over all heads of the layer.

    Source: arXiv 2401.06104 section 3. So all heads keep the same tokens.

    Args:
        queries: attention of the newest tokens [H, W, N], averaged over the query heads of a KV
            head.

    Returns:
        [H, N], the same in every head.
    """
    return queries[:, -1].mean(dim=0, keepdim=True).expand(queries.shape[0], -1)


def snapkv(queries: Tensor, *, kernel: int) -> Tensor:
    """Return the mean attention of a window of newest tokens to what is before it, pooled.

    Source: arXiv 2404.14469 section 4. The pooling (a mean over `kernel` neighbouring slots, 0
    beyond the ends) keeps neighbours together.

    Args:
        queries: attention of the newest W tokens [H, W, N], averaged over the query heads of a KV
            head.
        kernel: slots to pool over, odd.

    Returns:
        [H, N]; infinite for the window itself.
    """
    window = queries.shape[1]
    before = queries[..., : queries.shape[-1] - window].mean(dim=1)
    pooled = avg_pool1d(before, kernel, stride=1, padding=kernel // 2)
    return pad(pooled, (0, window), value=torch.inf)
