"""Triton attention over lists of keys, which block-sparse and gathered attention share.

A list names units of consecutive keys (blocks, or single tokens) for a group of queries in every
head that reads it. Its rows are those heads times those queries: a program folds the list's keys,
or a split of them, into a tile of its rows, so that a key is loaded once for the whole tile.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LAST = tl.constexpr(2**31 - 1)
SCAN = tl.constexpr(1024)  # list entries compared at a time


@triton.jit
def _below(ids, count, limit):
    """Count the entries of an ascending list less than `limit`; without ids it lists them all."""
    if ids is None:
        return tl.minimum(tl.maximum(limit, 0), count)
    else:
        lane = tl.arange(0, SCAN)
        found = tl.zeros([SCAN], tl.int32)
        for at in range(0, count, SCAN):
            entry = tl.load(ids + at + lane, mask=at + lane < count, other=LAST)
            found += (entry < limit).to(tl.int32)
        return tl.sum(found)


@triton.jit
def _tokens(ids, at, stop, gap_at, gap, UNIT: tl.constexpr, TILE_N: tl.constexpr):
    """Return the places at, at + 1, ... of a list and their tokens, [TILE_N] each.

    Places skip `gap` units from unit `gap_at` on.
    """
    place = at + tl.arange(0, TILE_N)
    if UNIT % TILE_N == 0:  # the tile lies in one unit
        unit = at // UNIT
        unit += tl.where(unit >= gap_at, gap, 0)
        if ids is not None:
            unit = tl.load(ids + unit)
    else:
        unit = place // UNIT
        unit += tl.where(unit >= gap_at, gap, 0)
        if ids is not None:
            unit = tl.load(ids + unit, mask=place < stop, other=0)
    return place, unit * UNIT + place % UNIT


@triton.jit
def _load(base, offset, there, column, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Load rows at `offset` [R], zeros where not `there` and in columns from WIDTH to PADDED."""
    cell = base + offset[:, None] + column[None, :]
    if WIDTH < PADDED:
        held = (column < WIDTH)[None, :]
        if there is not None:
            held = held & there[:, None]
        return tl.load(cell, mask=held, other=0.0)
    elif there is not None:
        return tl.load(cell, mask=there[:, None], other=0.0)
    else:
        return tl.load(cell)


@triton.jit
def _store(
    results,
    row,
    offset,
    there,
    top,
    total,
    acc,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,
    FINISH: tl.constexpr,
):
    """Store a softmax of R rows as (output, lse), or unfinished as (max, sum, acc).

    `row` [R] numbers the rows of [B, H, q_len], `offset` [R] finds them in the output, and `top`
    [R] is their largest scaled score.
    """
    column = tl.arange(0, PADDED)
    held = there[:, None] & (column < DIM)[None, :]
    if FINISH:
        some = tl.where(total == 0.0, 1.0, total)  # where no key was seen, top is -inf and acc 0
        mean = (acc / some[:, None]).to(results[0].dtype.element_ty)
        tl.store(results[0] + offset[:, None] + column[None, :], mean, mask=held)
        tl.store(results[1] + row, top + tl.log(some), mask=there)
    else:
        tl.store(results[0] + row, top, mask=there)
        tl.store(results[1] + row, total, mask=there)
        tl.store(results[2] + row[:, None] * DIM + column[None, :], acc, mask=held)


@triton.jit(do_not_specialize=["batch", "q_len", "k_len", "group", "groups", "tiles", "splits"])
def attend_kernel(
    query,
    key,
    value,
    lists,
    key_start,
    rotary,
    state,
    results,
    query_strides,
    key_strides,
    value_strides,
    output_strides,
    batch,
    heads,
    kv_heads,
    list_heads,
    q_len,
    k_len,
    group,
    groups,
    tiles,
    splits,
    scale,
    sink,
    local,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    UNIT: tl.constexpr,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,
    HALF_PADDED: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    FINISH: tl.constexpr,
):
    """Fold one split of a list's keys into one tile of its rows."""
    work = tl.program_id(0)
    tile = work % tiles
    g = groups - 1 - work // tiles % groups  # the longest causal rows first
    work = work // tiles // groups
    sets = kv_heads if lists is None else tl.maximum(list_heads, kv_heads)
    set_ = work % sets
    b = (work // sets % batch).to(tl.int64)
    split = (work // sets // batch).to(tl.int64)

    shared = heads // sets
    span = tl.minimum(group, q_len)
    rows = tile * TILE_M + tl.arange(0, TILE_M)
    head = set_ * shared + rows // span
    token_row = g * group + rows % span
    there = (rows < shared * span) & (token_row < q_len)
    position = token_row + k_len - q_len
    first = tl.min(tl.where(there, position, k_len))
    last = tl.max(tl.where(there, position, -q_len))
    row = (b * heads + head) * q_len + token_row
    query += b * query_strides[0]
    query_row = head.to(tl.int64) * query_strides[1] + token_row.to(tl.int64) * query_strides[2]
    kv_head = (set_ * kv_heads // sets).to(tl.int64)
    key += b * key_strides[0] + kv_head * key_strides[1]
    value += b * value_strides[0] + kv_head * value_strides[1]

    # The units that some row sees are [begin, end) less `gap` of them from `gap_at` on; every row
    # sees all of [begin, clear), but for keys before `start`.
    if lists is None:
        ids = None
        count = tl.cdiv(k_len, UNIT)
    else:
        list_ = (b * list_heads + set_ * list_heads // sets) * groups + g
        ids = lists[2] + tl.load(lists[0] + list_)
        count = tl.load(lists[1] + list_).to(tl.int32)
    begin, start = 0, 0
    if key_start is not None:
        start = tl.load(key_start + b).to(tl.int32)
        begin = _below(ids, count, start // UNIT)
        sink += start
    end, reach, clear_to = count, k_len, k_len
    if CAUSAL:
        reach, clear_to = last + 1, tl.minimum(first + 1, k_len)
        end = _below(ids, count, tl.cdiv(reach, UNIT))
    gap_at, gap = 0, 0
    if WINDOW:
        gap_at = tl.maximum(begin, _below(ids, count, tl.cdiv(sink, UNIT)))
        near = _below(ids, count, tl.maximum(first - local + 1, 0) // UNIT)
        gap = tl.maximum(0, tl.minimum(near, end) - gap_at)
        clear = begin
    else:
        clear = _below(ids, end, clear_to // UNIT)

    # From here on in places of the list, [begin, end) being those of this split.
    end = tl.maximum(begin, end - gap) * UNIT
    begin = begin * UNIT
    edge_at = begin + tl.maximum(0, clear * UNIT - begin) // TILE_N * TILE_N
    share = tl.cdiv(tl.cdiv(end - begin, TILE_N), splits) * TILE_N
    begin += split.to(tl.int32) * share
    end = tl.minimum(end, begin + share)

    column = tl.arange(0, PADDED)
    HALF: tl.constexpr = DIM // 2
    half = tl.arange(0, HALF_PADDED)
    if rotary is None:
        queries = _load(query, query_row, there, column, DIM, PADDED)
    else:
        queries = _load(query, query_row, there, half, HALF, HALF_PADDED)
        high_queries = _load(query + HALF, query_row, there, half, HALF, HALF_PADDED)
    if state is None:
        top = tl.full([TILE_M], -float("inf"), tl.float32)
        total = tl.zeros([TILE_M], tl.float32)
        acc = tl.zeros([TILE_M, PADDED], tl.float32)
    else:
        resumed = there & (split == 0)
        top = tl.load(state[0] + row, mask=resumed, other=-float("inf")) / scale
        total = tl.load(state[1] + row, mask=resumed, other=0.0)
        acc = _load(state[2], row * DIM, resumed, column, DIM, PADDED)

    exponent = scale * LOG2E  # `top` counts in q.k, exp2 in powers of two
    for EDGE in tl.static_range(2):  # the tiles seen whole, then those with hidden pairs
        low = tl.maximum(begin, edge_at) if EDGE else begin
        high = end if EDGE else tl.minimum(end, edge_at)
        for step in range(0, high - low, TILE_N):  # Triton pipelines loops that begin at a constant
            place, token = _tokens(ids, low + step, high, gap_at, gap, UNIT, TILE_N)
            visible = None
            if EDGE:
                visible = (place < high) & (token < reach) & (token >= start)
            elif key_start is not None:
                visible = token >= start
            key_row = token.to(tl.int64) * key_strides[2]
            if rotary is None:
                keys = _load(key, key_row, visible, column, DIM, PADDED)
                scores = tl.dot(queries, tl.trans(keys), input_precision="ieee")
            else:
                low_keys = _load(key, key_row, visible, half, HALF, HALF_PADDED)
                high_keys = _load(key + HALF, key_row, visible, half, HALF, HALF_PADDED)
                rank = place.to(tl.int64) * HALF
                cosine = _load(rotary[0], rank, visible, half, HALF, HALF_PADDED)
                sine = _load(rotary[1], rank, visible, half, HALF, HALF_PADDED)
                turned = (low_keys * cosine - high_keys * sine).to(queries.dtype)
                scores = tl.dot(queries, tl.trans(turned), input_precision="ieee")
                turned = (high_keys * cosine + low_keys * sine).to(queries.dtype)
                scores = tl.dot(high_queries, tl.trans(turned), scores, input_precision="ieee")
            if visible is not None:
                seen = visible[None, :]
                if EDGE and CAUSAL:
                    seen = seen & (token[None, :] <= position[:, None])
                if EDGE and WINDOW:
                    close = token[None, :] > position[:, None] - local
                    seen = seen & (close | (token < sink)[None, :])
                scores = tl.where(seen, scores, -float("inf"))
            grown = tl.maximum(top, tl.max(scores, 1))
            shift = tl.where(grown == -float("inf"), 0.0, grown * exponent)
            weights = tl.exp2(scores * exponent - shift[:, None])
            shrink = tl.exp2(top * exponent - shift)
            value_row = token.to(tl.int64) * value_strides[2]
            values = _load(value, value_row, visible, column, DIM, PADDED)
            total = total * shrink + tl.sum(weights, 1)
            acc = acc * shrink[:, None]
            acc = tl.dot(weights.to(values.dtype), values, acc, input_precision="ieee")
            top = grown

    offset = b * output_strides[0] + head.to(tl.int64) * output_strides[1]
    offset += token_row.to(tl.int64) * output_strides[2]
    row += split * batch * heads * q_len
    _store(results, row, offset, there, top * scale, total, acc, DIM, PADDED, FINISH)


@triton.jit(do_not_specialize=["q_len", "rows", "splits"])
def merge_kernel(
    parts,
    results,
    output_strides,
    heads,
    q_len,
    rows,
    splits,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,
    SPLITS: tl.constexpr,
    FINISH: tl.constexpr,
):
    """Merge the splits' softmaxes of one row; `parts` are [splits, B, H, q_len]."""
    row = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    split = tl.arange(0, SPLITS)
    there = split < splits
    place = row + split.to(tl.int64) * rows
    tops = tl.load(parts[0] + place, mask=there, other=-float("inf"))
    top = tl.max(tops)
    weights = tl.exp(tops - tl.where(top == -float("inf"), 0.0, top))
    total = tl.sum(tl.load(parts[1] + place, mask=there, other=0.0) * weights)
    accs = _load(parts[2], place * DIM, there, tl.arange(0, PADDED), DIM, PADDED)
    acc = tl.sum(accs * weights[:, None], 0)
    offset = row // q_len // heads * output_strides[0] + row // q_len % heads * output_strides[1]
    offset += row % q_len * output_strides[2]
    one = tl.zeros([1], tl.float32)
    _store(
        results, row, offset, row >= 0, top + one, total + one, acc[None, :], DIM, PADDED, FINISH
    )
