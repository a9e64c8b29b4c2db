"""The strategies' formulas again in plain float64 loops; nothing of `app`."""

from __future__ import annotations

import math

Vector = list[float]
Matrix = list[Vector]


def dot(left: Vector, right: Vector) -> float:
    return math.fsum(a * b for a, b in zip(left, right, strict=True))


def cosine(left: Vector, right: Vector) -> float:
    return dot(left, right) / math.sqrt(dot(left, left) * dot(right, right))


def softmax(row: Vector) -> Vector:
    largest = max(row)
    powers = [math.exp(value - largest) for value in row]
    return [power / math.fsum(powers) for power in powers]


def best(scores: Vector, allowed: list[int]) -> int:
    """The index of the highest score; of equal ones the lowest."""
    return min(allowed, key=lambda idx: (-scores[idx], idx))


def top(scores: Vector, count: int) -> list[int]:
    return sorted(sorted(range(len(scores)), key=lambda idx: (-scores[idx], idx))[:count])


def divprune(tokens: Matrix, count: int) -> list[int]:
    every = range(len(tokens))
    apart = [[1 - cosine(tokens[i], tokens[j]) for j in every] for i in every]
    nearest = [min(apart[i][j] for j in every if j != i) for i in every]
    kept = [best(nearest, list(every))]
    while len(kept) < count:
        distance = [min(apart[i][j] for j in kept) for i in every]
        kept.append(best(distance, [i for i in every if i not in kept]))
    return sorted(kept)


def mmtok(
    tokens: Matrix, words: Matrix, features: Matrix, count: int, *, alpha: float = 0.5
) -> list[int]:
    cover = []
    for word in words:
        row = softmax([cosine(word, token) / 0.02 for token in tokens])
        cover.append([value / len(words) for value in row])
    for target in features:
        row = softmax([cosine(target, other) / 0.2 for other in features])
        cover.append([alpha * value / len(features) for value in row])
    kept: list[int] = []
    while len(kept) < count:
        total = [
            math.fsum(max(row[i] for i in [*kept, new]) for row in cover)
            for new in range(len(tokens))
        ]
        kept.append(best(total, [i for i in range(len(tokens)) if i not in kept]))
    return sorted(kept)


def determinant(matrix: Matrix) -> float:
    rows, result = [list(row) for row in matrix], 1.0
    for at in range(len(rows)):
        pivot = max(range(at, len(rows)), key=lambda idx: abs(rows[idx][at]))
        if pivot != at:
            rows[at], rows[pivot], result = rows[pivot], rows[at], -result
        result *= rows[at][at]
        for below in range(at + 1, len(rows)):
            factor = rows[below][at] / rows[at][at]
            rows[below] = [a - factor * b for a, b in zip(rows[below], rows[at], strict=True)]
    return result


def cdpruner(
    tokens: Matrix, words: Matrix, count: int, *, weight: float = 0.5, negative: bool = False
) -> list[int]:
    sign = -1 if negative else 1
    mean = [sign * math.fsum(cosine(w, t) for w in words) / len(words) for t in tokens]
    relevance = [(value - min(mean)) / (max(mean) - min(mean)) for value in mean]
    scale = [math.exp(weight / (2 * (1 - weight)) * value) for value in relevance]
    every = range(len(tokens))
    alike = [[1.0 if i == j else cosine(tokens[i], tokens[j]) for j in every] for i in every]
    kernel = [[scale[i] * alike[i][j] * scale[j] for j in every] for i in every]
    kept: list[int] = []
    while len(kept) < count:
        volume = [
            determinant([[kernel[i][j] for j in [*kept, new]] for i in [*kept, new]])
            if new not in kept
            else -1.0
            for new in every
        ]
        kept.append(best(volume, [i for i in every if i not in kept]))
    return sorted(kept)


def visionzip(attention: Matrix, keys: Matrix, count: int) -> tuple[list[int], Matrix]:
    """Kept rows, and weights over all tokens; `keys` hold the heads side by side."""
    num_tokens, num_heads = len(keys), len(attention)
    contextual = int(count * 10 / 64)
    sums = [math.fsum(head[v] for head in attention) for v in range(num_tokens)]
    dominant = top(sums, count - contextual)
    width = len(keys[0]) // num_heads
    means = [
        [math.fsum(key[h * width + e] for h in range(num_heads)) for e in range(width)]
        for key in keys
    ]
    rest = [v for v in range(num_tokens) if v not in dominant]
    step = len(rest) // contextual if contextual else 1
    targets = [rest[idx * step] for idx in range(contextual)]
    joined: dict[int, list[int]] = {target: [] for target in targets}
    for other in rest:
        if other not in targets and targets:
            near = [cosine(means[other], means[target]) for target in targets]
            joined[targets[best(near, list(range(len(targets))))]].append(other)
    rows = sorted([*dominant, *targets])
    weights = [[0.0] * num_tokens for _ in rows]
    for at, row in enumerate(rows):
        weights[at][row] = 1.0
        for other in joined.get(row, []):
            weights[at][other] = 1 / len(joined[row])
    return rows, weights


def prumerge(
    attention: Matrix, keys: Matrix, count: int, *, neighbours: int
) -> tuple[list[int], Matrix]:
    num_tokens = len(keys)
    mean = [math.fsum(head[v] for head in attention) / len(attention) for v in range(num_tokens)]
    rows = top(mean, count)
    kept = top(mean, count - 1) if count > 1 else rows
    weights = [[0.0] * num_tokens for _ in rows]
    for at, row in enumerate(rows):
        if row in kept:
            like = [cosine(keys[row], key) for key in keys]
            like[row] = -math.inf
            for near in sorted(range(num_tokens), key=like.__getitem__, reverse=True)[:neighbours]:
                weights[at][near] = mean[near]
            weights[at][row] = 1.0
        else:
            for v in range(num_tokens):
                weights[at][v] = 0.0 if v in kept else mean[v]
    return rows, weights
