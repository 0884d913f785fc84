"""The shortest step of a small linear pipeline, by trying everything: depth first, with dominance.

Shares no code with the product. Micro-batches are alike, so that each rank takes them in order and a state is how
many F, I and W each rank has begun, with the times that still matter.
"""

from __future__ import annotations

from dataclasses import dataclass, field

_CLOSE = 1e-9


@dataclass
class ExactSearch:
    """One small pipeline.

    Attributes:
        m: micro-batches.
        seconds: (F, I, W), each a list of one number a rank.
        latency: seconds of a hop.
        caps: for each rank the most micro-batches between F and W.
    """

    m: int
    seconds: tuple[list[float], list[float], list[float]]
    latency: float
    caps: list[int]
    best: float = float("inf")
    seen: dict = field(default_factory=dict)

    def run(self) -> float:
        """The least makespan."""
        p = len(self.caps)
        self._go(((0, 0, 0),) * p, (0.0,) * p, ((),) * p, ((),) * p, 0.0)
        return self.best

    def _bound(self, counts, free) -> float:
        """Work that is left, and what comes after the last I of a rank on its way to rank 0."""
        least, after = 0.0, 0.0
        for r, (f, i, w) in enumerate(counts):
            forward, gradient, weight = (took[r] for took in self.seconds)
            gradients_end = free[r] + (self.m - f) * forward + (self.m - i) * gradient
            after = max(weight, self.latency + self.seconds[1][r - 1] + after if r else 0.0)
            least = max(
                least, gradients_end + (self.m - w) * weight, gradients_end + after if i < self.m else 0.0
            )
        return least

    def _is_dominated(self, counts, free, outputs, gradients, last) -> bool:
        p = len(free)
        times = [last, *free]
        for r in range(p):  # what neighbours have not taken yet
            times += outputs[r][counts[r + 1][0] if r + 1 < p else counts[r][0] :]
            times += gradients[r][counts[r - 1][1] if r else counts[r][1] :]
        others = self.seen.setdefault(counts, [])
        if any(all(a <= b + _CLOSE for a, b in zip(other, times, strict=True)) for other in others):
            return True
        others[:] = [o for o in others if not all(a <= b for a, b in zip(times, o, strict=True))]
        others.append(times)
        return False

    def _options(self, counts, free, outputs, gradients):
        p = len(free)
        for r, (f, i, w) in enumerate(counts):
            if f < self.m and f - w < self.caps[r] and (r == 0 or counts[r - 1][0] > f):
                yield max(free[r], outputs[r - 1][f] + self.latency if r else 0.0), r, 0
            if i < f and (r == p - 1 or counts[r + 1][1] > i):
                yield max(free[r], gradients[r + 1][i] + self.latency if r < p - 1 else 0.0), r, 1
            if w < i:
                yield free[r], r, 2

    def _go(self, counts, free, outputs, gradients, last) -> None:
        if all(count == (self.m,) * 3 for count in counts):
            self.best = min(self.best, max(free))
            return
        if self._bound(counts, free) >= self.best - _CLOSE or self._is_dominated(
            counts, free, outputs, gradients, last
        ):
            return
        options = sorted(
            self._options(counts, free, outputs, gradients), key=lambda o: (o[0], (1, 0, 2)[o[2]], o[1])
        )
        for start, r, kind in options:
            if start < last - _CLOSE:
                continue  # the same orders come up from the other side
            end = start + self.seconds[kind][r]
            count = tuple(n + (k == kind) for k, n in enumerate(counts[r]))
            self._go(
                (*counts[:r], count, *counts[r + 1 :]),
                (*free[:r], end, *free[r + 1 :]),
                outputs if kind else (*outputs[:r], (*outputs[r], end), *outputs[r + 1 :]),
                gradients if kind != 1 else (*gradients[:r], (*gradients[r], end), *gradients[r + 1 :]),
                start,
            )
